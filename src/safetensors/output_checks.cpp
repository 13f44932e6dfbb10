#include "safetensors/output_checks.h"

#include <dirent.h>
#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <string_view>

#include "base/system.h"
#include "peft/error.h"

namespace peft::safetensors {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxCounted = 1000;  // entries of a folder

[[noreturn]] void refuse_existing(const std::string& out, std::string expected, std::string got, std::string hint) {
  throw Error(ErrorCode::OUT_EXISTS, {.file = out,
                                      .problem = "the output exists",
                                      .expected = std::move(expected),
                                      .got = std::move(got),
                                      .hint = std::move(hint)});
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

// Is `at` the folder `out`, or does it lie in it?
bool within(const fs::path& at, const fs::path& out) {
  for (fs::path up = at; !up.empty() && up != up.root_path(); up = up.parent_path()) {
    if (up == out || same_file(up, out)) return true;
  }
  return false;
}

// A file of the output folder that another name also leads to: replacing the folder would take this name away.
bool shares_a_file(const fs::path& out, const fs::path& input) {
  std::error_code error;
  if (fs::hard_link_count(input, error) < 2 || error) return false;
  const auto names = names_in(out.string(), kMaxCounted);
  return names &&
         std::any_of(names->begin(), names->end(), [&](const auto& name) { return same_file(out / name, input); });
}

}  // namespace

std::string output_path(const std::string& out) {
  std::error_code error;
  const fs::path given = fs::absolute(out.empty() ? "." : out, error).lexically_normal();
  const fs::path slashless = given.has_filename() || given == given.root_path() ? given : given.parent_path();
  const bool link = fs::is_symlink(fs::symlink_status(slashless, error));
  if (link && !fs::exists(slashless, error)) {
    refuse_existing(out, "no such folder, or an empty one", "a link that leads to nothing",
                    "remove it, or choose another folder");
  }
  const fs::path resolved = fs::weakly_canonical(slashless, error);
  return (error ? slashless : resolved).string();
}

void require_no_alias(const std::string& out, const std::vector<std::string>& inputs) {
  for (const std::string& input : inputs) {
    std::error_code error;
    const fs::path named = fs::absolute(input, error).lexically_normal();
    const fs::path real = fs::weakly_canonical(input, error);
    if (!within(named, out) && !within(real, out) && !shares_a_file(out, real)) continue;
    throw Error(ErrorCode::OUT_ALIAS, {.file = out,
                                       .problem = "the output is an input, or the folder of one",
                                       .got = input,
                                       .hint = "choose a new folder with --out"});
  }
}

void require_free(const std::string& out, bool overwrite) {
  if (!is_present(out) || is_empty_folder(out)) return;
  std::error_code error;
  if (!fs::is_directory(out, error)) {
    refuse_existing(out, "no such folder, or an empty one", "a file", "choose another folder");
  }
  const std::size_t count = names_in(out, kMaxCounted).value_or(std::vector<std::string>()).size();
  const std::string got =
      fmt::format("{}{} {}", count, count == kMaxCounted ? " or more" : "", count == 1 ? "file" : "files");
  if (!overwrite) refuse_existing(out, "no such folder, or an empty one", got, "choose another folder, or --overwrite");
  // --overwrite replaces the whole folder, so it must not be one that is stood in.
  if (within(fs::current_path(error), out)) {
    refuse_existing(out, "a folder that may be replaced", "the current folder, or one above it",
                    "choose another folder");
  }
}

void require_space(const std::string& parent, std::uint64_t bytes) {
  struct statvfs space {};
  if (bytes == 0 || SystemCalls::get().statvfs(parent.c_str(), &space) != 0) return;  // the writes will tell
  const std::uint64_t free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  if (free >= bytes) return;
  throw Error(ErrorCode::OUT_SPACE, {.file = parent,
                                     .problem = "not enough space for the output",
                                     .expected = fmt::format("{} bytes", bytes),
                                     .got = fmt::format("{} bytes free", free),
                                     .hint = "nothing was written; choose another place for the output"});
}

bool is_present(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

bool is_empty_folder(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return false;
  const auto names = names_in(path, 1);
  return names && names->empty();
}

// Not std::filesystem's iterator, which ends the process when there is no memory.
std::optional<std::vector<std::string>> names_in(const std::string& folder, std::size_t most) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(folder.c_str()), ::closedir);
  if (!directory) return std::nullopt;
  std::vector<std::string> names;
  errno = 0;
  while (names.size() < most) {
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr && errno != 0) return std::nullopt;
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace peft::safetensors
