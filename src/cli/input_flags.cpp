#include "cli/input_flags.h"

#include <algorithm>
#include <array>

#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr std::array kFloatDtypes = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f64};

[[noreturn]] void bad_value(const std::string& flag, const std::string& value,
                            const std::vector<std::string>& allowed) {
  std::string list;
  for (const auto& name : allowed) list += (list.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::USAGE,
              {.problem = "there is no such value for " + flag, .expected = "one of " + list, .got = value});
}

// The value for one of the adapters; "" when absent or "auto".
std::string pick(const std::vector<std::string>& values, std::size_t which) {
  if (values.empty()) return {};
  const std::string& value = values[std::min(which, values.size() - 1)];
  return value == "auto" ? std::string() : value;
}

}  // namespace

std::vector<std::string> layout_names() {
  std::vector<std::string> names;
  for (const auto& row : layouts()) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> float_dtype_names() {
  std::vector<std::string> names;
  for (const auto dtype : kFloatDtypes) names.emplace_back(info(dtype).name);
  return names;
}

Layout parse_layout_flag(const std::string& flag, const std::string& value) {
  if (const auto layout = parse_layout(value)) return *layout;
  bad_value(flag, value, layout_names());
}

Dtype parse_dtype_flag(const std::string& flag, const std::string& value) {
  const auto dtype = parse_dtype(value);
  if (dtype && std::find(kFloatDtypes.begin(), kFloatDtypes.end(), *dtype) != kFloatDtypes.end()) return *dtype;
  bad_value(flag, value, float_dtype_names());
}

InputOptions InputFlags::options(std::size_t which) const {
  InputOptions options;
  options.base = base;
  options.family = family;
  options.families_file = families_file;
  options.num_experts = num_experts;
  options.adapter_name = pick(adapter_name, which);
  options.open = open;
  options.read.ignore_unused = ignore_unused;
  if (const auto name = pick(from, which); !name.empty()) options.read.layout = parse_layout_flag("--from", name);
  options.read.orientation = pick(orientation, which);
  if (const auto& value = options.read.orientation; !value.empty() && value != "out-in" && value != "in-out") {
    bad_value("--orientation", value, {"out-in", "in-out"});
  }
  const auto packing = pick(b_packing, which);
  if (packing == "rank-major") {
    options.read.b_packing = BPacking::rank_major;
  } else if (packing == "grouped-by-expert") {
    options.read.b_packing = BPacking::grouped_by_expert;
  } else if (!packing.empty()) {
    bad_value("--b-packing", packing, {"rank-major", "grouped-by-expert"});
  }
  return options;
}

}  // namespace peft::cli
