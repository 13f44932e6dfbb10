// Carries out a plan: streams, stages beside the output, syncs, reads back, renames.
// The output folder appears complete and verified, or not at all; inputs are never modified.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "peft/plan.h"

namespace peft {

struct ExecuteOptions {
  int threads = 0;                           // 0: all cores. The bytes written do not depend on it
  bool sync = true;                          // fsync files and folders
  bool readback = true;                      // read what was written and compare digests
  bool overwrite = false;                    // replace an existing output folder, atomically
  std::function<void(std::uint64_t done, std::uint64_t total)> progress{};   // bytes written; called from any thread, rate limited by the callee
  const std::atomic<bool>* cancel = nullptr; // set to stop: INTERRUPTED, nothing left behind
};

struct ExecuteReport {
  std::uint64_t bytes_in = 0, bytes_out = 0;
  double seconds = 0;
};

ExecuteReport execute(const Plan& plan, const std::string& out_folder, const ExecuteOptions& options = {});

// The same into memory: one byte image per planned file. The simple element-by-element form; what tests compare with.
std::vector<std::vector<std::byte>> execute_in_memory(const Plan& plan);

}  // namespace peft
