// The folder beside the output in which a run collects its files, and which nobody else uses meanwhile.
#pragma once

#include <string>

namespace peft::safetensors {

class StagingFolder {
 public:
  // Makes OUT.partial-peft and locks it. One that nobody holds is left from a killed run: it is emptied. Throws
  // OUT_LOCKED.
  explicit StagingFolder(const std::string& out);
  ~StagingFolder();  // unlocks; removes nothing
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
};

// Removes what is at `path`, folders with all they hold; links are not followed. False when something is left.
bool remove_tree(const std::string& path) noexcept;

// Flushes the names in a folder to the disk. Throws IO_WRITE.
void sync_folder(const std::string& path);

[[noreturn]] void fail_writing(const std::string& path, const char* action, int error);  // IO_WRITE, or OUT_SPACE

}  // namespace peft::safetensors
