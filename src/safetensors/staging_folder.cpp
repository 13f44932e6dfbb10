#include "safetensors/staging_folder.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/system_calls.h"
#include "peft/error.h"

namespace peft::safetensors {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuffix = ".partial-peft";  // a name that no other program gives to a folder

[[noreturn]] void refuse_locked(const std::string& out, const std::string& staging) {
  throw Error(ErrorCode::OUT_LOCKED, {.file = out,
                                      .problem = "another run is writing this output",
                                      .got = staging,
                                      .hint = "wait for it, or choose another folder"});
}

// Some network file systems have no locks; a new folder is ours all the same.
bool without_locks(int error) { return error == ENOLCK || error == ENOSYS || error == EOPNOTSUPP || error == EINVAL; }

// What was locked must still be what the name leads to: its former owner may have renamed or removed it.
bool still_named(int fd, const std::string& path) {
  struct stat locked {
  }, named{};
  return ::fstat(fd, &locked) == 0 && ::lstat(path.c_str(), &named) == 0 && locked.st_ino == named.st_ino &&
         locked.st_dev == named.st_dev;
}

bool empty_folder(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path());
  bool emptied = !error;
  for (const std::string& name : names) emptied = remove_tree(name) && emptied;
  return emptied;
}

}  // namespace

void fail_writing(const std::string& path, const char* action, int error) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw Error(space ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
              {.file = path,
               .problem = std::string(action) + " failed",
               .got = std::strerror(error),
               .hint = space ? "free some space, or choose another place for the output" : "nothing was left behind"});
}

StagingFolder::StagingFolder(const std::string& out) : path_(out + kSuffix) {
  auto& calls = SystemCalls::get();
  const bool made = calls.mkdir(path_.c_str(), 0777) == 0;
  if (!made && errno != EEXIST) {
    const int error = errno;
    throw Error(error == ENOSPC ? ErrorCode::OUT_SPACE : ErrorCode::IO_WRITE,
                {.file = path_,
                 .problem = "mkdir failed",
                 .got = std::strerror(error),
                 .hint = "does the folder that --out lies in exist, and may it be written?"});
  }
  fd_ = calls.open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  const int open_error = errno;
  const bool locked = fd_ >= 0 && (calls.lock(fd_) == 0 || (made && without_locks(errno)));
  if (locked && still_named(fd_, path_) && (made || empty_folder(path_))) return;
  if (fd_ >= 0) calls.close(fd_);
  if (made) calls.rmdir(path_.c_str());
  if (fd_ < 0) fail_writing(path_, "open", open_error);
  refuse_locked(out, path_);
}

StagingFolder::~StagingFolder() { SystemCalls::get().close(fd_); }

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
