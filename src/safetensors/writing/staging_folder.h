// The folder beside the output in which runs collect its files, and whether a folder may become the output.
//
//   OUT.partial-peft/files/          what becomes OUT, by one rename; every file in it is complete
//   OUT.partial-peft/NAME.unfinished-... files that are being written
//   OUT.partial-peft/journal-...     what is finished, when it is kept for a later run (execute/resume/journal.h)
//   OUT.partial-peft/lock-I-of-N     held by the run that writes part I
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace peft::safetensors {

enum class Claim {
  fresh,   // for this run alone, and empty
  resume,  // for this run alone, with what earlier runs have finished
  share,   // with the runs that write other parts
};

class StagingFolder {
 public:
  // Makes the folder, or takes the one that is there. A folder that no run holds was left by a run that stopped:
  // Claim::fresh empties it, but throws OUT_EXISTS when it has journals and may not be discarded. `part` is "I-of-N".
  // Throws OUT_LOCKED when another run holds the folder, or this part of it.
  StagingFolder(const std::string& out, Claim claim, bool may_discard, const std::string& part);
  ~StagingFolder();  // unlocks; removes nothing
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string files() const { return path_ + "/files"; }
  // Paths in the folder that no other process uses, on this machine or another. So where a network has no locks, a
  // second run of the same part costs time, but never a file.
  std::string temporary_path(std::string name) const;  // until the file is complete
  std::string journal_path() const;
  // Removes everything: the journals last, and of those the one of this process, which knows all files, as the very
  // last.
  bool remove() noexcept;

 private:
  void claim(const std::string& out, Claim claim, bool may_discard, bool made);
  void claim_part(const std::string& out);
  void remove_stale(const std::string& part) const;

  std::string path_, part_, process_;
  int fd_ = -1, part_fd_ = -1;
};

// The path of the staging folder of an output.
std::string staging_path(const std::string& out);
// The journals in a staging folder, sorted. Empty when there is no folder.
std::vector<std::string> journal_paths(const std::string& staging);

// Removes what is at `path`, folders with all they hold; links are not followed. False when something is left.
bool remove_tree(const std::string& path) noexcept;

// Flushes the names in a folder to the disk. Throws IO_WRITE.
void sync_folder(const std::string& path);

// ---- Checks of the output folder, before anything is written

// The path without links and dots, so that beside it is really beside it. OUT_EXISTS for a link to nothing.
std::string output_path(const std::string& out);

// OUT_ALIAS when writing `out` would replace an input, the folder of one, or a file that is also an input.
void require_no_alias(const std::string& out, const std::vector<std::string>& inputs);

// OUT_EXISTS unless there is nothing, an empty folder, or (overwrite) a folder other than the current one. Of a single
// file: unless there is nothing, or (overwrite) a file.
void require_free(const std::string& out, bool overwrite, bool single_file = false);

// OUT_SPACE when the file system of the folder `parent` has less than `bytes` free.
void require_space(const std::string& parent, std::uint64_t bytes);

bool is_present(const std::string& path);  // links count, wherever they lead
bool is_empty_folder(const std::string& path);
// At most `most` of a folder's names, sorted. Absent when it cannot be read.
std::optional<std::vector<std::string>> names_in(const std::string& folder, std::size_t most = SIZE_MAX);

}  // namespace peft::safetensors
