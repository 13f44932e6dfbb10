// A regular file opened for reading, and what it was when it was opened.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <span>
#include <string>

namespace peft::safetensors {

struct FileIdentity {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};
FileIdentity identity_of(const struct stat& status);

class InputFile {
 public:
  enum class Links { follow, refuse };  // refuse: a path that was found to be no link, and may have become one
  // Throws IO_OPEN (missing, no permission) or IO_KIND (a folder, a pipe, a device, ...). Never waits for a writer.
  explicit InputFile(const std::string& path, Links links = Links::follow);
  // `name` inside an open folder; `path` is for messages.
  InputFile(int folder_fd, const std::string& name, const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  std::uint64_t size() const { return identity_.size; }
  const FileIdentity& identity() const { return identity_; }
  // Fills all of `bytes` from `offset`; throws IO_CHANGED when the file ends before that.
  void read(std::uint64_t offset, std::span<char> bytes) const;

 private:
  void examine();

  std::string path_;
  int fd_ = -1;
  FileIdentity identity_;
};

// Throws IO_CHANGED unless `path` still names the file it named, unmodified.
void require_unchanged(const std::string& path, const FileIdentity& before);

}  // namespace peft::safetensors
