// Input files: opened for reading, and compared later with what they were; links; whole texts.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "peft/error.h"

namespace peft::safetensors {

struct FileIdentity {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};
FileIdentity identity_of(const struct stat& status);

class InputFile {
 public:
  enum class Links { follow, refuse };  // refuse: for a path that was no link when it was looked at
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

// What a file is called in messages.
struct FileFacts {
  std::string path;
  std::uint64_t size = 0;            // of the whole file
  std::string_view part = "header";  // what its JSON is called: "header", "index"
};

// A user names a folder. Its files may be read, and so may the targets of links that stay in the folder or lead to the
// blobs of the same repository in a Hugging Face cache (snapshots/REVISION/x -> ../../blobs/SHA). The target of any
// other link is a file that nobody named; --follow-symlinks accepts it.

// Throws IX_LINK when the open file does not lie in `folder`. The link cannot change afterwards.
void require_inside(const InputFile& file, const std::string& folder);

// Where folder/name, a regular file, really lies: a path whose last part is no link, to be copied from later. Throws
// IX_LINK for a link that leaves the folder, IO_OPEN for one that leads nowhere, IO_KIND for what is no regular file.
std::string path_inside(const std::string& folder, const std::string& name, bool follow_symlinks);

// The whole text of a config or an index: at most kMaxTextBytes. Throws `missing` when there is no such file, `form`
// when the text is too long or is a Git LFS pointer, and IO_OPEN or IO_KIND as InputFile does.
inline constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;
std::string read_text_file(const std::string& path, ErrorCode form = ErrorCode::CF_FORM,
                           ErrorCode missing = ErrorCode::CF_FORM);

// A clone of a repository without Git LFS has a pointer in the place of each large file. Throws `code` for it.
inline constexpr std::string_view kLfsPointer = "version https://git-lfs",
                                  kLfsText = "a Git LFS pointer, not the file itself",
                                  kLfsHint = "run `git lfs pull` in the repository";
void refuse_lfs_pointer(std::string_view text, const std::string& path, ErrorCode code);

}  // namespace peft::safetensors
