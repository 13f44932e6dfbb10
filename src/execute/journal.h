// Which files of an output are finished, for a run that goes on where another stopped.
//
// A journal is text, one line for each file, with a checksum in front. The first line names the fingerprint. Every run
// writes a journal of its own; what counts is all of them together. A line is added after its file is synced and
// renamed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "safetensors/writing/staging_folder.h"

namespace peft::execution {

struct FinishedFile {
  std::string name;
  std::uint64_t size = 0;
  std::optional<std::uint64_t> digest{};  // of the digests of its units; absent when nothing was read back
  std::uint64_t staging = 0;              // CutSizes::staging, which decides what the units are
  bool operator==(const FinishedFile&) const = default;
};

// All that the journals of a staging folder say. Throws RS_JOURNAL for a journal that is damaged other than at its end,
// or belongs to an output with another fingerprint.
std::vector<FinishedFile> read_journals(const std::string& staging, const std::string& fingerprint);

class Journal {
 public:
  Journal(const safetensors::StagingFolder& staging, const std::string& fingerprint, bool sync);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  void add(const std::vector<FinishedFile>& files);
  void withdraw() noexcept;  // nothing that this run has finished is to be used

 private:
  void write(const std::string& lines);

  std::string path_;
  int fd_ = -1;
  std::uint64_t end_ = 0;
  bool sync_;
};

}  // namespace peft::execution
