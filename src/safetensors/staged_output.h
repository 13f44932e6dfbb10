// A folder of output files that appears complete or not at all.
//
// Everything is written to OUT.partial-peft beside OUT, synced, and renamed in one step. Whatever goes wrong before
// that, the staging folder is removed and OUT is as it was. The folder of a run that was killed is removed by the next.
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
    std::uint64_t expected_bytes = 0;  // of all files: OUT_SPACE at once if they cannot fit
  };
  // Checks before anything is written: OUT_ALIAS when the output would replace an input or the folder of one,
  // OUT_EXISTS, OUT_SPACE, OUT_LOCKED when another run writes the same output.
  StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths);
  ~StagedOutput();
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  // `name` is relative to the output folder and may lie in subfolders.
  NewFile& add_file(const std::string& name, std::uint64_t size);
  void add_text(const std::string& name, std::string_view content);
  void copy_file(const std::string& name, const std::string& path);
  // After this the output is there. If it throws, the output is not there, or is the old one.
  void commit();
  // What could not be tidied up after a commit: the folder that was replaced.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  enum class Published { fresh, in_place_of_empty, exchanged, moved_aside };

  std::string staged_path(const std::string& name);  // makes the subfolders
  Published publish();
  Published replace_old();
  void unpublish(Published how) noexcept;
  void remove_old(Published how);
  std::string aside() const { return out_ + ".old-peft"; }

  std::string out_;
  Options options_;
  std::optional<safetensors::StagingFolder> staging_;
  bool committed_ = false;
  std::vector<std::unique_ptr<NewFile>> files_;
  std::vector<std::string> folders_;  // made inside staging, outermost first
  std::vector<std::string> warnings_;
};

}  // namespace peft
