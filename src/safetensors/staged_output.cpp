#include "safetensors/staged_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/system_calls.h"
#include "peft/error.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(ErrorCode code, const std::string& path, const char* call, int error) {
  throw Error(code, {.file = path, .problem = std::string(call) + " failed: " + std::strerror(error)});
}

bool present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

bool is_empty_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(fs::symlink_status(path, error)) && fs::is_empty(path, error) && !error;
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// The output must not be an input, hold one, or be the folder of one: by what the paths lead to, not by their text.
void check_alias(const std::string& out, const std::vector<std::string>& inputs) {
  std::error_code error;
  const fs::path target = fs::weakly_canonical(out, error);
  const auto within_target = [&](fs::path at) {
    for (; !at.empty() && at != at.root_path(); at = at.parent_path()) {
      std::error_code ignored;
      if (at == target || (present(target) && fs::equivalent(at, target, ignored))) return true;
    }
    return false;
  };
  for (const std::string& input : inputs) {
    // As it is named, and where links lead.
    if (!within_target(fs::absolute(input, error).lexically_normal()) && !within_target(fs::weakly_canonical(input, error))) continue;
    throw Error(ErrorCode::OUT_ALIAS, {.file = out,
                                       .problem = "the output is an input, or the folder of one",
                                       .got = input,
                                       .hint = "choose a new folder with --out"});
  }
}

void check_free(const std::string& out, bool overwrite) {
  if (!present(out) || is_empty_folder(out) || overwrite) return;
  std::error_code error;
  std::size_t count = 0;
  for (auto it = fs::directory_iterator(out, error); !error && it != fs::directory_iterator() && count < 1000; it.increment(error)) ++count;
  throw Error(ErrorCode::OUT_EXISTS, {.file = out,
                                      .problem = "the output exists",
                                      .expected = "no such folder, or an empty one",
                                      .got = std::to_string(count) + (count == 1 ? " file" : " files"),
                                      .hint = "choose another folder, or --overwrite"});
}

void sync_folder(const std::string& path) {
  auto& calls = SystemCalls::get();
  const int fd = calls.open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) fail(ErrorCode::IO_WRITE, path, "open", errno);
  const int result = calls.fsync(fd), error = errno;
  calls.close(fd);
  if (result != 0 && error != EINVAL) fail(ErrorCode::IO_WRITE, path, "fsync", error);
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// Makes and locks the staging folder. One that nobody holds is left from a killed run: it is emptied.
int take_staging(const std::string& out, const std::string& staging) {
  auto& calls = SystemCalls::get();
  if (calls.mkdir(staging.c_str(), 0777) != 0 && errno != EEXIST) {
    throw Error(ErrorCode::IO_WRITE, {.file = staging,
                                      .problem = std::string("mkdir failed: ") + std::strerror(errno),
                                      .hint = "does the folder that --out lies in exist, and may it be written?"});
  }
  const int fd = calls.open(staging.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0) fail(ErrorCode::IO_WRITE, staging, "open", errno);
  struct stat locked {}, named {};
  const bool held = calls.lock(fd) == 0;
  const bool same = held && ::fstat(fd, &locked) == 0 && ::stat(staging.c_str(), &named) == 0 && locked.st_ino == named.st_ino;
  if (!same) {
    calls.close(fd);
    throw Error(ErrorCode::OUT_LOCKED, {.file = out, .problem = "another run is writing this output", .got = staging,
                                        .hint = "wait for it, or choose another folder"});
  }
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(staging, ignored)) fs::remove_all(entry.path(), ignored);
  return fd;
}

}  // namespace

StagedOutput::StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths)
    : out_(without_slash(out_folder)), staging_(out_ + ".partial"), options_(options) {
  check_alias(out_, input_paths);
  check_free(out_, options_.overwrite);
  lock_fd_ = take_staging(out_, staging_);
}

StagedOutput::~StagedOutput() {
  if (!committed_) discard();
  if (lock_fd_ >= 0) SystemCalls::get().close(lock_fd_);
}

void StagedOutput::discard() noexcept {
  files_.clear();
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
}

std::string StagedOutput::staged_path(const std::string& name) {
  auto& calls = SystemCalls::get();
  for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string folder = staging_ + "/" + name.substr(0, slash);
    if (present(folder)) continue;
    if (calls.mkdir(folder.c_str(), 0777) != 0) fail(ErrorCode::IO_WRITE, folder, "mkdir", errno);
    folders_.push_back(folder);
  }
  return staging_ + "/" + name;
}

NewFile& StagedOutput::add_file(const std::string& name, std::uint64_t size) {
  files_.push_back(std::make_unique<NewFile>(staged_path(name), size));
  return *files_.back();
}

void StagedOutput::add_text(const std::string& name, std::string_view content) {
  add_file(name, content.size()).write_at(0, std::as_bytes(std::span(content)));
}

void StagedOutput::copy_file(const std::string& name, const std::string& path) {
  auto& calls = SystemCalls::get();
  const int fd = calls.open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
  if (fd < 0) fail(ErrorCode::IO_OPEN, path, "open", errno);
  std::string content;
  try {
    std::string buffer(1 << 20, '\0');
    for (;;) {
      const ssize_t got = calls.pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(content.size()));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(ErrorCode::IO_OPEN, path, "read", errno);
      if (got == 0) break;
      content.append(buffer, 0, static_cast<std::size_t>(got));
    }
  } catch (...) {
    calls.close(fd);
    throw;
  }
  calls.close(fd);
  add_text(name, content);
}

void StagedOutput::commit() {
  for (auto& file : files_) file->close(options_.sync);
  if (options_.sync) {
    for (auto folder = folders_.rbegin(); folder != folders_.rend(); ++folder) sync_folder(*folder);
    sync_folder(staging_);
  }
  publish();
  committed_ = true;
  if (options_.sync) sync_folder(parent_of(out_));
}

void StagedOutput::publish() {
  auto& calls = SystemCalls::get();
  const auto moved = [&](unsigned flags) { return calls.rename(staging_.c_str(), out_.c_str(), flags) == 0; };
  if (present(out_) && !is_empty_folder(out_)) {
    if (!options_.overwrite) fail(ErrorCode::OUT_EXISTS, out_, "rename", EEXIST);
    if (!moved(RENAME_EXCHANGE)) fail(ErrorCode::IO_WRITE, out_, "exchanging the old output for the new one", errno);
    std::error_code ignored;
    fs::remove_all(staging_, ignored);   // now the old output
    return;
  }
  // An empty folder is replaced by rename itself; anything else that has appeared meanwhile makes it fail.
  if (present(out_) ? moved(0) : moved(RENAME_NOREPLACE)) return;
  if ((errno == EINVAL || errno == ENOSYS) && moved(0)) return;
  fail(errno == EEXIST || errno == ENOTEMPTY ? ErrorCode::OUT_EXISTS : ErrorCode::IO_WRITE, out_, "rename", errno);
}

}  // namespace peft
