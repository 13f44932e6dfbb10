#include "model/targets/block_diagonal.h"

#include <algorithm>

#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "peft/error.h"

namespace peft::model {
namespace {

constexpr std::string_view kKey = "use_bdlora";
constexpr const char* kWrongType = "the value has the wrong type";

// The place of a field of the key, for errors.
ErrorPlace place_of(const AdapterConfig& config, std::string_view field) {
  return at(config.file, std::string(kKey) + "." + std::string(field));
}

std::vector<std::string> names(const AdapterConfig& config, const pythonic::Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end() || found->is_null()) return {};
  const bool right =
      found->is_array() && std::ranges::all_of(*found, [](const pythonic::Json& name) { return name.is_string(); });
  if (!right)
    place_of(config, field)
        .fail(ErrorCode::CF_VALUE,
              {.problem = kWrongType, .expected = "a list of names or null", .got = config::shown(*found)});
  return found->get<std::vector<std::string>>();
}

bool is_part_of(const std::string& target, const std::vector<std::string>& parts) {
  return std::ranges::any_of(parts, [&](const std::string& part) { return target.find(part) != std::string::npos; });
}

}  // namespace

BlockSide BlockDiagonal::side_of(const std::string& target) const {
  const bool a = is_part_of(target, of_a), b = is_part_of(target, of_b);
  if (a && b)
    ErrorPlace{.tensor = target}.fail(
        ErrorCode::CF_TARGET,
        {.problem = "use_bdlora names this target for lora_A and for lora_B", .python_error = "ValueError"});
  if (!a && !b && strict) {
    ErrorPlace{.tensor = target}.fail(ErrorCode::CF_TARGET,
                                      {.problem = "use_bdlora does not name this target",
                                       .hint = "match_strict false leaves such targets plain LoRA",
                                       .python_error = "ValueError"});
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
        .fail(ErrorCode::CF_VALUE, {.problem = kWrongType,
                                    .expected = "an object or null",
                                    .got = config::shown(*found),
                                    .python_error = "TypeError"});
  BlockDiagonal blocks{names(config, *found, "target_modules_bd_a"), names(config, *found, "target_modules_bd_b")};
  if (const auto count = found->find("nblocks"); count != found->end()) {
    if (!count->is_number_integer() || count->get<std::int64_t>() < 1)
      place_of(config, "nblocks")
          .fail(ErrorCode::CF_VALUE,
                {.problem = kWrongType, .expected = "a positive integer", .got = config::shown(*count)});
    blocks.count = count->get<std::int64_t>();
  }
  if (const auto strict = found->find("match_strict"); strict != found->end()) {
    if (!strict->is_boolean())
      place_of(config, "match_strict")
          .fail(ErrorCode::CF_VALUE,
                {.problem = kWrongType, .expected = "true or false", .got = config::shown(*strict)});
    blocks.strict = strict->get<bool>();
  }
  return blocks;
}

}  // namespace peft::model
