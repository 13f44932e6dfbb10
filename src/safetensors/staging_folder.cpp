#include "safetensors/staging_folder.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "base/system.h"
#include "peft/error.h"
#include "safetensors/output_checks.h"

namespace peft::safetensors {
namespace {

constexpr const char* kSuffix = ".partial-peft";  // a name that no other program gives to a folder
constexpr const char* kWhole = "1-of-1";
constexpr const char* kTemporary = ".unfinished-";
constexpr const char* kJournal = "journal-";
constexpr std::size_t kMaxNamePart = 100;  // of an output's name in its temporary one: names end at 255 bytes

[[noreturn]] void refuse_locked(const std::string& out, const std::string& what) {
  throw Error(ErrorCode::OUT_LOCKED, {.file = out,
                                      .problem = "another run is writing this output",
                                      .got = what,
                                      .hint = "wait for it, or choose another folder"});
}

// Some network file systems have no locks.
bool without_locks(int error) { return error == ENOLCK || error == ENOSYS || error == EOPNOTSUPP || error == EINVAL; }

// What was locked must still be what the name leads to: its former owner may have renamed or removed it.
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

// Of this process, whatever other machines write into the same folder.
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
  throw Error(error == ENOSPC ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
              {.file = path,
               .problem = "mkdir failed",
               .got = std::strerror(error),
               .hint = "does the folder that --out lies in exist, and may it be written?"});
}

}  // namespace

std::string staging_path(const std::string& out) { return out + kSuffix; }

std::vector<std::string> journal_paths(const std::string& staging) {
  std::vector<std::string> paths;
  for (const std::string& name : names_in(staging).value_or(std::vector<std::string>())) {
    if (name.starts_with(kJournal)) paths.push_back(staging + "/" + name);
  }
  return paths;
}

void fail_writing(const std::string& path, const char* action, int error) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw Error(space ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
              {.file = path,
               .problem = std::string(action) + " failed",
               .got = std::strerror(error),
               .hint = space ? "free some space, or choose another place for the output" : ""});
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
  // Without locks: a new folder is ours, and what is kept is never harmed by a second run. Only emptying needs one.
  if (!locked && !(without_locks(errno) && (made || wanted != Claim::fresh))) refuse_locked(out, path_);
  if (!still_named(fd_, path_)) refuse_locked(out, path_);
  if (wanted == Claim::share) return claim_part(out);
  if (wanted == Claim::resume) {
    if (locked) remove_stale("");
    return;
  }
  if (made) return;
  if (!may_discard && !journal_paths(path_).empty()) {
    throw Error(ErrorCode::OUT_EXISTS, {.file = path_,
                                        .problem = "an earlier run has left an unfinished output",
                                        .hint = "--resume goes on with it, --overwrite starts over"});
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

// What killed runs of the part were writing.
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
