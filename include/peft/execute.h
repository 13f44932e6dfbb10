// Carries out a plan: streams, stages beside the output, syncs, reads back, renames.
// The output folder appears complete and verified, or not at all; inputs are never modified.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "peft/plan.h"

namespace peft {

// A run of hours should not have to begin again. What becomes of the files that are finished when a run fails, is
// cancelled or killed:
enum class Unfinished {
  remove,  // nothing is left behind
  keep,    // they stay in OUT.partial-peft
  resume,  // as keep; and those that an earlier run has left are checked and used. The same plan: RS_JOURNAL otherwise
};

struct ExecuteOptions {
  int threads = 0;         // 0: all cores. The bytes written do not depend on it
  bool sync = true;        // fsync files and folders
  bool readback = true;    // read what was written and compare digests
  bool overwrite = false;  // replace an existing output folder, atomically
  std::function<void(std::uint64_t done, std::uint64_t total)>
      progress{};                             // bytes written; called from any thread, rate limited by the callee
  const std::atomic<bool>* cancel = nullptr;  // set to stop: INTERRUPTED
  Unfinished unfinished = Unfinished::remove;
  bool trust_journal = false;  // resume: compare sizes and headers of finished files, not their digests
  // Several processes, on one machine or many, may each write a part of the files (always with Unfinished::resume).
  int part = 0, parts = 0;  // 1 <= part <= parts: writes its share and publishes nothing
  bool finish = false;      // publishes what the parts have written: RS_PARTS when something is missing
  bool want_norms = false;  // fill ExecuteReport::merged: costs a reading of the matrices that change
};

// One update of a merge and the matrix it changed. Sums in fp64 and in a fixed order: the same on any number of
// threads.
struct MergedMatrix {
  std::size_t file = 0, tensor = 0, update = 0;  // of the plan: files[file].tensors[tensor].merge->updates[update]
  double base_norm = 0;                          // Frobenius norm of the matrix before the merge (in base_dtype)
  double delta_norm = 0;                         // of what this update alone adds to it; DoRA: g * (W + d) - W
};

// MergeMode::fast against the exact sum, on sampled rows. All zero for the other modes.
struct MergeError {
  std::uint64_t sampled = 0, different = 0;  // elements compared; those that are not the exact sum rounded once
  double max_ulps = 0;  // the largest distance from the exact sum rounded once, in last places of that value
};

// A merged tensor that is stored in a quantised type of GGUF, and what rounding to its codes cost.
struct PackedTensor {
  std::size_t file = 0, tensor = 0;  // of the plan
  double delta_norm = 0;             // of what the merge adds, Frobenius
  double error_norm = 0;             // of stored - merged
  double kept = 0;                   // the part of the delta that is there: <stored - before, delta> / <delta, delta>
};

struct ExecuteReport {
  std::uint64_t bytes_in = 0, bytes_out = 0;
  double seconds = 0;
  std::size_t files_written = 0, files_resumed = 0;  // those of earlier runs that were used
  bool published = true;                             // false: a part, which waits for the others and for `finish`
  std::vector<std::string> warnings{};               // what could not be tidied up
  std::vector<MergedMatrix> merged{};                // in the order of the plan; empty unless want_norms
  MergeError error{};
  std::vector<PackedTensor> packed{};  // in the order of the plan
};

ExecuteReport execute(const Plan& plan, const std::string& out_folder, const ExecuteOptions& options = {});

// What carries a plan out: execute() itself, or a function that also shows how far it is, or lets itself be stopped.
using Executor = std::function<ExecuteReport(const Plan& plan, const std::string& out_folder, ExecuteOptions options)>;

// ---- in memory -----------------------------------------------------------------------------------------------------
// A plan carried out in the simplest way, in memory: the form that tests compare execute() with, and the form to use
// where a result is small and no file is wanted.

// One byte image per planned file, made element by element, with none of the machinery of execute(). Merged tensors are
// an exception: they are made as execute() makes them, and Evaluator is what they compare with.
std::vector<std::vector<std::byte>> execute_in_memory(const Plan& plan);

// The data section of one planned file, rendered into memory of layout_file(file).data_bytes: the bytes that execute()
// writes there. Of the options it takes threads, progress and cancel.
void execute_into(std::span<std::byte> data, const Plan& plan, std::size_t file, const ExecuteOptions& options = {});

// What a planned tensor's values are, computed in fp64 and not rounded: the reference for merges. Slow and simple.
// Several adapters as in MergeMode::best, whatever the plan's mode: all are added, DoRA norms are those of the unmerged
// W. One thread at a time.
class Evaluator {
 public:
  // The plan must outlive it. With DoRA this reads the whole tensor, to know its norms.
  Evaluator(const Plan& plan, std::size_t file, std::size_t tensor);
  ~Evaluator();
  Evaluator(Evaluator&&) noexcept;
  Evaluator& operator=(Evaluator&&) noexcept;

  // Rows [first, first + count) of the tensor's matrix, row after row: what the blocks hold, converted to base_dtype;
  // and with all updates.
  std::vector<double> base(std::int64_t first, std::int64_t count) const;
  std::vector<double> merged(std::int64_t first, std::int64_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace peft
