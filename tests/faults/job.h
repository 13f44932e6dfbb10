// A run like a merge's, small: a model of several shards written in a folder of its own, with texts and side files.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "peft/error.h"
#include "peft/execute.h"

namespace peft::faults {

using Contents = std::map<std::string, std::string>;  // path in a folder -> bytes; folders are left out

struct JobSize {
  int shards = 4;
  int tensors = 6;         // of a shard
  std::int64_t rows = 40;  // of the smallest shard; the others are larger
};

class Job {
 public:
  explicit Job(const JobSize& size = {});  // writes the sources
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  const std::string& folder() const { return folder_; }
  std::string out() const { return folder_ + "/out"; }
  std::string staging() const { return out() + ".partial-peft"; }
  std::string source() const { return folder_ + "/base/model-00001.safetensors"; }
  Plan plan() const;  // opens the sources
  const Contents& expected() const { return expected_; }

  // Everything that a run makes, gone.
  void clean() const;
  // P1 to P3: inputs are as they were; the output is absent or complete; what else is there is recognisably partial.
  // Empty, or what is wrong.
  std::string check() const;
  bool is_complete() const;  // and nothing is left beside it

 private:
  JobSize size_;
  std::string folder_;
  Contents inputs_, expected_;
};

Contents contents_of(const std::string& folder);
std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

// Runs it. Absent: done. std::bad_alloc is shown as the command line shows it, as OUT_MEMORY.
std::optional<Error> run(const Job& job, const ExecuteOptions& options, ExecuteReport* report = nullptr);
ExecuteOptions keeping(int threads = 1);   // Unfinished::keep, no syncing
ExecuteOptions resuming(int threads = 1);  // Unfinished::resume, no syncing

// One row of the table that the program prints when all its tests are done, and docs/reliability.md shows.
void add_row(const std::string& fault, const std::string& scenario, long long points, const std::string& result);
// How often a test that takes long is repeated: PEFT_FAULT_RUNS, or `usual`.
int runs(int usual);

}  // namespace peft::faults
