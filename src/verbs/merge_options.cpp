// What a merge's options look like as text.
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "peft/error.h"
#include "peft/merge.h"

namespace peft {
namespace {

constexpr std::array<std::pair<MergeMode, std::string_view>, 4> kModes = {{{MergeMode::best, "best"},
                                                                           {MergeMode::peft, "peft"},
                                                                           {MergeMode::peft_safe, "peft-safe"},
                                                                           {MergeMode::fast, "fast"}}};

// Decimal and binary units, as huggingface_hub has them; a number alone is bytes.
constexpr std::array<std::pair<std::string_view, std::uint64_t>, 8> kUnits = {{{"KIB", std::uint64_t{1} << 10},
                                                                               {"MIB", std::uint64_t{1} << 20},
                                                                               {"GIB", std::uint64_t{1} << 30},
                                                                               {"TIB", std::uint64_t{1} << 40},
                                                                               {"KB", 1'000},
                                                                               {"MB", 1'000'000},
                                                                               {"GB", 1'000'000'000},
                                                                               {"TB", 1'000'000'000'000}}};

bool parse_number(std::string_view text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value) && !text.empty();
}

}  // namespace

std::string_view name(MergeMode mode) {
  for (const auto& [known, text] : kModes) {
    if (known == mode) return text;
  }
  return "";
}

std::optional<MergeMode> parse_merge_mode(std::string_view text) {
  for (const auto& [mode, known] : kModes) {
    if (known == text) return mode;
  }
  return std::nullopt;
}

WeightedAdapter parse_weighted_adapter(const std::string& text) {
  std::error_code error;
  const auto at = text.rfind('@');
  double weight = 1;
  if (at == std::string::npos || std::filesystem::exists(text, error)) return {text, 1};
  std::string_view number = std::string_view(text).substr(at + 1);
  if (number.starts_with('+')) number.remove_prefix(1);
  if (at == 0 || !parse_number(number, weight)) return {text, 1};
  return {text.substr(0, at), weight};
}

std::uint64_t parse_size(std::string_view text) {
  std::string upper;
  for (const char c : text) upper += static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  std::uint64_t unit = 1;
  std::string_view digits = upper;
  for (const auto& [name, bytes] : kUnits) {
    if (!digits.ends_with(name)) continue;
    digits.remove_suffix(name.size());
    unit = bytes;
    break;
  }
  while (digits.ends_with(' ')) digits.remove_suffix(1);
  double value = 0;
  constexpr double kLargest = 1e18;
  if (!parse_number(digits, value) || value <= 0 || value * static_cast<double>(unit) > kLargest) {
    throw Error(ErrorCode::USAGE, {.problem = "not a size",
                                   .expected = "a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 5GB",
                                   .got = std::string(text)});
  }
  return static_cast<std::uint64_t>(value * static_cast<double>(unit));
}

}  // namespace peft
