#include "safetensors/writing/staging_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string_view>

#include "base/system.h"
#include "peft/error.h"
#include "safetensors/writing/new_file.h"

namespace peft::safetensors {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxCounted = 1000;  // entries of a folder

[[noreturn]] void refuse_existing(const std::string& out, std::string expected, std::string got, std::string hint) {
  at(out).fail(ErrorCode::OUT_EXISTS, {.problem = "the output exists",
                                       .expected = std::move(expected),
                                       .got = std::move(got),
                                       .hint = std::move(hint)});
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

// Whether `path` is the folder `out`, or lies in it.
bool within(const fs::path& path, const fs::path& out) {
  for (fs::path up = path; !up.empty() && up != up.root_path(); up = up.parent_path()) {
    if (up == out || same_file(up, out)) return true;
  }
  return false;
}

// Whether a file of the output folder is a hard link to the input: replacing the folder would take that name away.
bool shares_a_file(const fs::path& out, const fs::path& input) {
  std::error_code error;
  if (fs::hard_link_count(input, error) < 2 || error) return false;
  const auto names = names_in(out.string(), kMaxCounted);
  return names &&
         std::any_of(names->begin(), names->end(), [&](const auto& name) { return same_file(out / name, input); });
}

constexpr const char* kStagingSuffix = ".partial-peft";  // a name that no other program gives to a folder
constexpr const char* kWhole = "1-of-1";
constexpr const char* kTemporary = ".unfinished-";
constexpr const char* kJournal = "journal-";
constexpr std::size_t kMaxNamePart = 100;  // of an output's name in its temporary one: names end at 255 bytes

[[noreturn]] void refuse_locked(const std::string& out, const std::string& what) {
  at(out).fail(
      ErrorCode::OUT_LOCKED,
      {.problem = "another run is writing this output", .got = what, .hint = "wait for it, or choose another folder"});
}

// Some network file systems have no locks.
bool without_locks(int error) { return error == ENOLCK || error == ENOSYS || error == EOPNOTSUPP || error == EINVAL; }

// The name must still lead to the folder that was locked: its former owner may have renamed or removed it.
bool still_named(int fd, const std::string& path) {
  struct stat locked {
  }, named{};
  return ::fstat(fd, &locked) == 0 && ::lstat(path.c_str(), &named) == 0 && locked.st_ino == named.st_ino &&
         locked.st_dev == named.st_dev;
}

bool empty_folder(const std::string& path, const std::vector<std::string>& except = {}) {
  const auto names = names_in(path);
  bool emptied = names.has_value();
  for (const std::string& name : names.value_or(std::vector<std::string>())) {
    const std::string inside = path + "/" + name;
    if (std::find(except.begin(), except.end(), inside) != except.end()) continue;
    emptied = remove_tree(inside) && emptied;
  }
  return emptied;
}

// A name of this process that no process on another machine has, which may write into the same folder.
std::string process_name() {
  char host[65] = "host";
  ::gethostname(host, sizeof host - 1);
  std::string name(host);
  std::replace(name.begin(), name.end(), '/', '_');
  return fmt::format("{}-{}-{:08x}", name, ::getpid(), std::random_device()());
}

bool make_folder(const std::string& path) {
  if (SystemCalls::get().mkdir(path.c_str(), 0777) == 0) return true;
  if (errno == EEXIST) return false;
  const int error = errno;
  at(path).fail(error == ENOSPC ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
                {.problem = "mkdir failed",
                 .got = std::strerror(error),
                 .hint = "does the folder that --out lies in exist, and may it be written?"});
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
    at(out).fail(ErrorCode::OUT_ALIAS, {.problem = "the output is an input, or the folder of one",
                                        .got = input,
                                        .hint = "choose a new folder with --out"});
  }
}

namespace {

void require_free_file(const std::string& out, bool overwrite) {
  std::error_code error;
  if (!is_present(out) || (overwrite && fs::is_regular_file(out, error))) return;
  const bool folder = fs::is_directory(out, error);
  refuse_existing(out, "no such file", folder ? "a folder" : "a file",
                  folder ? "name a file with --out" : "choose another name, or --overwrite");
}

}  // namespace

void require_free(const std::string& out, bool overwrite, bool single_file) {
  if (single_file) return require_free_file(out, overwrite);
  if (!is_present(out) || is_empty_folder(out)) return;
  std::error_code error;
  if (!fs::is_directory(out, error)) {
    refuse_existing(out, "no such folder, or an empty one", "a file", "choose another folder");
  }
  const std::size_t count = names_in(out, kMaxCounted).value_or(std::vector<std::string>()).size();
  const std::string got =
      fmt::format("{}{} {}", count, count == kMaxCounted ? " or more" : "", count == 1 ? "file" : "files");
  if (!overwrite) refuse_existing(out, "no such folder, or an empty one", got, "choose another folder, or --overwrite");
  // --overwrite replaces the whole folder, so it must not be the current one.
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
  at(parent).fail(ErrorCode::OUT_SPACE, {.problem = "not enough space for the output",
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

// std::filesystem's iterator would end the process when there is no memory.
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

std::string staging_path(const std::string& out) { return out + kStagingSuffix; }

std::vector<std::string> journal_paths(const std::string& staging) {
  std::vector<std::string> paths;
  for (const std::string& name : names_in(staging).value_or(std::vector<std::string>())) {
    if (name.starts_with(kJournal)) paths.push_back(staging + "/" + name);
  }
  return paths;
}

StagingFolder::StagingFolder(const std::string& out, Claim wanted, bool may_discard, const std::string& part)
    : path_(staging_path(out)), part_(part.empty() ? kWhole : part), process_(process_name()) {
  const bool made = make_folder(path_);
  try {
    claim(out, wanted, may_discard, made);
    make_folder(files());
  } catch (...) {
    auto& calls = SystemCalls::get();
    if (part_fd_ >= 0) calls.close(part_fd_);
    if (fd_ >= 0) calls.close(fd_);
    if (made) calls.rmdir(path_.c_str());
    throw;
  }
}

void StagingFolder::claim(const std::string& out, Claim wanted, bool may_discard, bool made) {
  auto& calls = SystemCalls::get();
  fd_ = calls.open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd_ < 0) fail_writing(path_, "open", errno);
  const bool locked = calls.lock(fd_, wanted == Claim::share) == 0;
  // Where there are no locks: a folder that we made is ours, and a second run never harms the files that are kept. Only
  // emptying a folder needs a lock.
  if (!locked && !(without_locks(errno) && (made || wanted != Claim::fresh))) refuse_locked(out, path_);
  if (!still_named(fd_, path_)) refuse_locked(out, path_);
  if (wanted == Claim::share) return claim_part(out);
  if (wanted == Claim::resume) {
    if (locked) remove_stale("");
    return;
  }
  if (made) return;
  if (!may_discard && !journal_paths(path_).empty()) {
    at(path_).fail(ErrorCode::OUT_EXISTS, {.problem = "an earlier run has left an unfinished output",
                                           .hint = "--resume continues it, --overwrite starts over"});
  }
  if (!empty_folder(path_)) refuse_locked(out, path_);
}

void StagingFolder::claim_part(const std::string& out) {
  auto& calls = SystemCalls::get();
  const std::string path = path_ + "/lock-" + part_;
  part_fd_ = calls.open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (part_fd_ < 0) fail_writing(path, "open", errno);
  const bool locked = calls.lock(part_fd_, false) == 0;
  if (!locked && !without_locks(errno)) refuse_locked(out, path);
  if (locked) remove_stale(part_ + "-");
}

// Removes the files that killed runs of the part were writing.
void StagingFolder::remove_stale(const std::string& part) const {
  for (const std::string& name : names_in(path_).value_or(std::vector<std::string>())) {
    if (name.find(kTemporary + part) != std::string::npos) remove_tree(path_ + "/" + name);
  }
}

std::string StagingFolder::temporary_path(std::string name) const {
  name.resize(std::min(name.size(), kMaxNamePart));
  std::replace(name.begin(), name.end(), '/', '_');
  return fmt::format("{}/{}{}{}-{}", path_, name, kTemporary, part_, process_);
}

std::string StagingFolder::journal_path() const { return fmt::format("{}/{}{}-{}", path_, kJournal, part_, process_); }

StagingFolder::~StagingFolder() {
  auto& calls = SystemCalls::get();
  if (part_fd_ >= 0) calls.close(part_fd_);
  calls.close(fd_);
}

bool StagingFolder::remove() noexcept {
  try {
    return empty_folder(path_, journal_paths(path_)) && empty_folder(path_, {journal_path()}) && remove_tree(path_);
  } catch (...) {  // no memory for the list of names
    return false;
  }
}

bool remove_tree(const std::string& path) noexcept {
  auto& calls = SystemCalls::get();
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return errno == ENOENT;
  if (!S_ISDIR(status.st_mode)) return calls.unlink(path.c_str()) == 0;
  try {
    return empty_folder(path) && calls.rmdir(path.c_str()) == 0;
  } catch (...) {  // no memory for the list of names
    return false;
  }
}

void sync_folder(const std::string& path) {
  auto& calls = SystemCalls::get();
  const int fd = calls.open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) fail_writing(path, "open", errno);
  const int result = calls.fsync(fd), error = errno;
  calls.close(fd);
  if (result != 0 && error != EINVAL) fail_writing(path, "fsync", error);  // EINVAL: folders cannot be synced here
}

}  // namespace peft::safetensors
