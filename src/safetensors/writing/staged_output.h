// A folder of output files, or one output file, that appears complete or not at all.
//
// Everything is written to OUT.partial-peft beside OUT (staging_folder.h), synced, and renamed in one step. If
// anything fails before that, OUT does not change. The staging folder is then removed, or kept with its complete files
// for a later run. The next run removes the folder of a killed run or resumes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "safetensors/writing/new_file.h"
#include "safetensors/writing/staging_folder.h"

namespace peft {

class StagedOutput {
 public:
  struct Options {
    bool overwrite = false;            // replace an existing folder or file, in one step
    bool sync = true;                  // flush files and folders to the disk
    bool readback = false;             // of texts and side files: OUT_READBACK. Tensor files are read back by execute
    bool single_file = false;          // OUT is the one file that is added, not a folder
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

  void discard() { options_.keep = false; }  // nothing is kept for a later run
  bool keeps_something() const;              // whether a later run could resume, if this one fails now
  // Finishes all files. After this the output is there. If it throws, the output is not there, or is the old one.
  void commit();
  // What could not be removed after a commit, such as the folder that was replaced.
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
  std::string made() const;  // what becomes OUT: the folder of finished files, or the finished file

  std::string out_;
  Options options_;
  std::optional<safetensors::StagingFolder> staging_;
  bool committed_ = false;
  std::vector<Staged> files_;
  std::vector<std::string> folders_;  // made inside staging, outermost first
  std::vector<std::string> warnings_;
};

}  // namespace peft
