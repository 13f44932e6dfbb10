#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "peft/error.h"

namespace peft {
namespace {

constexpr std::size_t kMaxLength = 255;    // longer names are not compared
constexpr std::size_t kMaxEntries = 4096;  // the first entries of a folder

std::string quoted_list(const std::vector<std::string>& names) {
  std::vector<std::string> quoted;
  for (const std::string& name : names) quoted.push_back("\"" + printable(name) + "\"");
  return fmt::format("{}", fmt::join(quoted, ", "));
}

}  // namespace

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string list_text(std::span<const std::string> names, std::size_t limit, std::string_view more) {
  std::string text = fmt::format("{}", fmt::join(names.first(std::min(names.size(), limit)), ", "));
  if (names.size() > limit) text += fmt::format(fmt::runtime(more), names.size() - limit);
  return text;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::vector<std::string> near_names(std::string_view wanted, std::span<const std::string> names, std::size_t count) {
  std::vector<std::pair<std::size_t, std::string>> ranked;
  for (const std::string& name : names) {
    if (name.size() > kMaxLength || wanted.size() > kMaxLength) continue;
    const std::size_t distance = edit_distance(wanted, name);
    if (distance * 2 <= std::max(wanted.size(), name.size())) ranked.emplace_back(distance, name);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string> nearest;
  for (std::size_t i = 0; i < std::min(count, ranked.size()); ++i) nearest.push_back(ranked[i].second);
  return nearest;
}

std::string missing_file_hint(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(folder, error), end; !error && it != end && names.size() < kMaxEntries;
       it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return "the folder cannot be read either: " + error.message();
  if (names.empty()) return "the folder is empty";
  const std::vector<std::string> nearest = near_names(fs::path(path).filename().string(), names);
  return nearest.empty() ? "the folder has nothing of a similar name" : "the folder has " + quoted_list(nearest);
}

}  // namespace peft
