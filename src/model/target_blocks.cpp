#include "model/target_blocks.h"

#include <algorithm>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "model/target_resolver.h"

namespace peft::model {
namespace {

constexpr std::string_view kKey = "use_bdlora";

[[noreturn]] void wrong(const AdapterConfig& config, std::string_view field, std::string expected,
                        const pythonic::Json& got) {
  at(config.file, std::string(kKey) + "." + std::string(field))
      .fail(ErrorCode::CF_VALUE,
            {.problem = "the value has the wrong type", .expected = std::move(expected), .got = config::shown(got)});
}

std::vector<std::string> names(const AdapterConfig& config, const pythonic::Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end() || found->is_null()) return {};
  const bool right =
      found->is_array() && std::ranges::all_of(*found, [](const pythonic::Json& name) { return name.is_string(); });
  if (!right) wrong(config, field, "a list of names or null", *found);
  return found->get<std::vector<std::string>>();
}

bool is_part_of(const std::string& target, const std::vector<std::string>& parts) {
  return std::ranges::any_of(parts, [&](const std::string& part) { return target.find(part) != std::string::npos; });
}

}  // namespace

BlockSide BlockDiagonal::side_of(const std::string& target) const {
  const bool a = is_part_of(target, of_a), b = is_part_of(target, of_b);
  if (a && b) refuse_target("ValueError", target, "use_bdlora names this target for lora_A and for lora_B");
  if (!a && !b && strict) {
    refuse_target("ValueError", target, "use_bdlora does not name this target",
                  "match_strict false leaves such targets plain LoRA");
  }
  return a ? BlockSide::a : b ? BlockSide::b : BlockSide::none;
}

std::optional<BlockDiagonal> block_diagonal(const AdapterConfig& config, AdapterConfig::Version version) {
  const config::PeftKey& row = *config::find_peft_key(kKey);
  const pythonic::Json object = config::object_of(config);
  const auto found = object.find(kKey);
  if (version <= row.before || found == object.end() || !config::tells(row, *found)) return std::nullopt;
  if (!found->is_object())
    at(config.file, std::string(kKey))
        .fail(ErrorCode::CF_VALUE, {.problem = "the value has the wrong type",
                                    .expected = "an object or null",
                                    .got = config::shown(*found),
                                    .python_error = "TypeError"});
  BlockDiagonal blocks{names(config, *found, "target_modules_bd_a"), names(config, *found, "target_modules_bd_b")};
  if (const auto count = found->find("nblocks"); count != found->end()) {
    if (!count->is_number_integer() || count->get<std::int64_t>() < 1)
      wrong(config, "nblocks", "a positive integer", *count);
    blocks.count = count->get<std::int64_t>();
  }
  if (const auto strict = found->find("match_strict"); strict != found->end()) {
    if (!strict->is_boolean()) wrong(config, "match_strict", "true or false", *strict);
    blocks.strict = strict->get<bool>();
  }
  return blocks;
}

}  // namespace peft::model
