// What the outside sees of a run, and says to it: progress and cancellation.
#pragma once

#include <atomic>
#include <cstdint>

#include "peft/execute.h"

namespace peft::execution {

class Monitor {
 public:
  Monitor(const ExecuteOptions& options, std::uint64_t total) : options_(options), total_(total) {}

  // Throws INTERRUPTED once the run is cancelled.
  void check() const;
  // Bytes written. Safe from any thread.
  void add(std::uint64_t bytes);

 private:
  const ExecuteOptions& options_;
  std::uint64_t total_;
  std::atomic<std::uint64_t> done_ = 0;
};

}  // namespace peft::execution
