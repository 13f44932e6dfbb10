// A folder of output files that appears complete or not at all.
//
// Everything is written to OUT.partial beside OUT, synced, and renamed in one step. Whatever goes wrong before
// that, the staging folder is removed and OUT is as it was. The folder of a run that was killed is removed by the next.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft {

// One file of the output, of a size that is known beforehand. Writing and reading are thread-safe. Throws IO_WRITE or OUT_SPACE.
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
  void close(bool sync);   // throws when the bytes may not have reached the disk

 private:
  std::string path_;
  std::uint64_t size_;
  int fd_ = -1;
};

class StagedOutput {
 public:
  struct Options {
    bool overwrite = false;   // replace an existing folder, in one step
    bool sync = true;         // flush files and folders to the disk
  };
  // Checks before anything is written: OUT_ALIAS when the output would replace an input or the folder of one, OUT_EXISTS,
  // OUT_LOCKED when another run writes the same output.
  StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths);
  ~StagedOutput();
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  // `name` is relative to the output folder and may lie in subfolders.
  NewFile& add_file(const std::string& name, std::uint64_t size);
  void add_text(const std::string& name, std::string_view content);
  void copy_file(const std::string& name, const std::string& path);
  void commit();

 private:
  std::string staged_path(const std::string& name);   // makes the subfolders
  void discard() noexcept;
  void publish();

  std::string out_, staging_, lock_path_;
  Options options_;
  int lock_fd_ = -1;
  bool committed_ = false;
  std::vector<std::unique_ptr<NewFile>> files_;
  std::vector<std::string> folders_;      // made inside staging, outermost first
};

}  // namespace peft
