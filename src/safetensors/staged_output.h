// A folder of output files that appears complete or not at all.
//
// Everything is written to OUT.partial-peft beside OUT (staging_folder.h), synced, and renamed in one step. Whatever
// goes wrong before that, OUT is as it was. The staging folder is removed then, or kept with the files that are
// complete for a later run. The folder of a run that was killed is removed, or gone on with, by the next.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "safetensors/staging_folder.h"

namespace peft {

// One file of the output, of a size that is known beforehand. Writing and reading are thread-safe. Throws IO_WRITE or
// OUT_SPACE; after that the file is spoiled, and close() throws as well.
class NewFile {
 public:
  NewFile(std::string path, std::uint64_t size);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  // Calls of the system end where a multiple of this does: then the kernel takes whole, large pages for the file. Not
  // more: what is asked for at once has to be free in one piece.
  static constexpr std::uint64_t kBlock = std::uint64_t{1} << 20;
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  void writev_at(std::uint64_t offset, std::span<const iovec> parts);
  void read_at(std::uint64_t offset, std::span<std::byte> bytes) const;
  void close(bool sync);  // throws when the bytes may not have reached the disk; does nothing when closed

 private:
  [[noreturn]] void fail(const char* action, int error);
  void require_inside(std::uint64_t offset, std::span<const iovec> parts) const;

  std::string path_;
  std::uint64_t size_;
  int fd_ = -1;
  std::atomic<bool> spoiled_{false};
};

class StagedOutput {
 public:
  struct Options {
    bool overwrite = false;            // replace an existing folder, in one step
    bool sync = true;                  // flush files and folders to the disk
    bool readback = false;             // of texts and side files: OUT_READBACK. Tensor files are read back by execute
    std::uint64_t expected_bytes = 0;  // of all files: OUT_SPACE at once if they cannot fit
    safetensors::Claim claim = safetensors::Claim::fresh;
    bool keep = false;   // complete files stay in the staging folder until the output is there
    std::string part{};  // "I-of-N", of a share
  };
  // Checks before anything is written: OUT_ALIAS when the output would replace an input or the folder of one,
  // OUT_EXISTS, OUT_SPACE, OUT_LOCKED when another run writes the same output.
  StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths);
  ~StagedOutput();
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  // `name` is relative to the output folder and may lie in subfolders. The file has another name until finish().
  NewFile& add_file(const std::string& name, std::uint64_t size);
  void finish(NewFile& file);  // synced, and under its name; what was there is replaced
  void add_text(const std::string& name, std::string_view content);
  void copy_file(const std::string& name, const std::string& path);  // `path` is no link: path_inside() gives such
  // Where a finished file is before the commit.
  std::string finished_path(const std::string& name) const { return staging_->files() + "/" + name; }
  const safetensors::StagingFolder& staging() const { return *staging_; }

  void discard() { options_.keep = false; }  // nothing is to be gone on with
  bool keeps_something() const;              // if the run fails now
  // Finishes all files. After this the output is there. If it throws, the output is not there, or is the old one.
  void commit();
  // What could not be tidied up after a commit: the folder that was replaced.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  enum class Published { fresh, in_place_of_empty, exchanged, moved_aside };
  struct Staged {
    std::string name;
    std::unique_ptr<NewFile> file;
    bool finished = false;
  };

  void make_subfolders(const std::string& name);
  void finish(Staged& staged);
  Published publish();
  Published replace_old();
  void unpublish(Published how) noexcept;
  void tidy_up(Published how);
  std::string aside() const { return out_ + ".old-peft"; }

  std::string out_;
  Options options_;
  std::optional<safetensors::StagingFolder> staging_;
  bool committed_ = false;
  std::vector<Staged> files_;
  std::vector<std::string> folders_;  // made inside staging, outermost first
  std::vector<std::string> warnings_;
};

}  // namespace peft
