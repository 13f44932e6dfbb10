// The folder beside the output in which runs collect its files.
//
//   OUT.partial-peft/files/          what becomes OUT, by one rename; every file in it is complete
//   OUT.partial-peft/NAME.unfinished-... files that are being written
//   OUT.partial-peft/journal-...     what is finished, when it is kept for a later run (execute/resume/journal.h)
//   OUT.partial-peft/lock-I-of-N     held by the run that writes part I
#pragma once

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
  // Makes the folder, or takes the one that is there. One that nobody holds is left from a run that was stopped: with
  // Claim::fresh it is emptied, unless it has journals and may not be discarded (OUT_EXISTS). `part` is "I-of-N".
  // Throws OUT_LOCKED when another run holds it, or this part of it.
  StagingFolder(const std::string& out, Claim claim, bool may_discard, const std::string& part);
  ~StagingFolder();  // unlocks; removes nothing
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string files() const { return path_ + "/files"; }
  // Paths in the folder that no other process uses, on this machine or another: where locks do not reach across a
  // network, a second run of the same part costs time, never a file.
  std::string temporary_path(std::string name) const;  // until the file is complete
  std::string journal_path() const;
  // Everything; the journals last, and the one of this process, which knows all files, as the very last.
  bool remove() noexcept;

 private:
  void claim(const std::string& out, Claim claim, bool may_discard, bool made);
  void claim_part(const std::string& out);
  void remove_stale(const std::string& part) const;

  std::string path_, part_, process_;
  int fd_ = -1, part_fd_ = -1;
};

// Where the staging folder of an output is.
std::string staging_path(const std::string& out);
// Of the journals in a staging folder, sorted. Empty when there is no folder.
std::vector<std::string> journal_paths(const std::string& staging);

// Removes what is at `path`, folders with all they hold; links are not followed. False when something is left.
bool remove_tree(const std::string& path) noexcept;

// Flushes the names in a folder to the disk. Throws IO_WRITE.
void sync_folder(const std::string& path);

[[noreturn]] void fail_writing(const std::string& path, const char* action, int error);  // IO_WRITE, or OUT_SPACE

}  // namespace peft::safetensors
