#include "cli/token_ids.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "peft/error.h"

namespace peft::cli {
namespace {

[[noreturn]] void bad(std::string problem, std::string expected, std::string got, std::string hint = {}) {
  throw Error(
      ErrorCode::USAGE,
      {.problem = std::move(problem), .expected = std::move(expected), .got = std::move(got), .hint = std::move(hint)});
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.push_back(trimmed(text.substr(0, end)));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::int64_t parse_number(std::string_view flag, std::size_t row, std::size_t place, std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    bad(fmt::format("{}: row {}, place {} is not a token id", flag, row + 1, place + 1), "a number from 0 on",
        text.empty() ? "nothing" : std::string(text));
  }
  return value;
}

Rows parse_rows(std::string_view flag, std::string_view text) {
  Rows rows;
  for (const auto row_text : split(text, ';')) {
    std::vector<std::int64_t> row;
    for (const auto number : split(row_text, ',')) row.push_back(parse_number(flag, rows.size(), row.size(), number));
    if (!rows.empty() && row.size() != rows.front().size()) {
      bad(fmt::format("{}: row {} is not as long as row 1", flag, rows.size() + 1),
          fmt::format("{} numbers", rows.front().size()), std::to_string(row.size()),
          "fill up shorter rows on the left, and mark the padding with 0 in --mask");
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

Rows parse_ids(std::string_view text) { return parse_rows("--ids", text); }

Rows parse_mask(std::string_view text, const Rows& ids) {
  if (trimmed(text).empty()) return {};
  Rows mask = parse_rows("--mask", text);
  if (mask.size() != ids.size() || mask.front().size() != ids.front().size()) {
    bad("--mask does not have the shape of --ids", fmt::format("{} rows of {}", ids.size(), ids.front().size()),
        fmt::format("{} rows of {}", mask.size(), mask.front().size()));
  }
  for (std::size_t row = 0; row < mask.size(); ++row) {
    const auto wrong = std::find_if(mask[row].begin(), mask[row].end(), [](std::int64_t value) { return value > 1; });
    if (wrong != mask[row].end()) {
      bad(fmt::format("--mask: row {} has another number than 0 and 1", row + 1), "0 or 1", std::to_string(*wrong));
    }
    if (std::find(mask[row].begin(), mask[row].end(), 1) == mask[row].end()) {
      bad(fmt::format("--mask: row {} has no token", row + 1), "at least one 1", "only zeros");
    }
  }
  return mask;
}

void require_left_padding(const Rows& mask) {
  for (std::size_t row = 0; row < mask.size(); ++row) {
    if (std::is_sorted(mask[row].begin(), mask[row].end())) continue;
    bad(fmt::format("--mask: row {} is padded on the right, or between tokens", row + 1), "zeros first, then ones",
        "a 0 after a 1", "text goes on after the last token: fill up on the left");
  }
}

}  // namespace peft::cli
