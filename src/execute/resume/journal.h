// The record of finished files that makes runs resumable.
//
// A journal is text with one line for each finished file. Each line starts with its checksum. The first line names the
// fingerprint. Every run writes a journal of its own; readers join all of them. A line is added after its file is
// synced and renamed.
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
  std::optional<std::uint64_t> digest{};  // digest of its units' digests; absent when the file was not read back
  std::uint64_t staging = 0;              // CutSizes::staging, which decides what the units are
  bool operator==(const FinishedFile&) const = default;
};

// Reads all journals of a staging folder. Throws RS_JOURNAL for a journal that is damaged before its last line, and for
// one with another fingerprint.
std::vector<FinishedFile> read_journals(const std::string& staging, const std::string& fingerprint);

class Journal {
 public:
  Journal(const safetensors::StagingFolder& staging, const std::string& fingerprint, bool sync);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  void add(const std::vector<FinishedFile>& files);
  void withdraw() noexcept;  // removes the journal: later runs use nothing of this run

 private:
  void write(const std::string& lines);

  std::string path_;
  int fd_ = -1;
  std::uint64_t end_ = 0;
  bool sync_;
};

}  // namespace peft::execution
