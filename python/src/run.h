// Work that takes a while: done without the GIL, with progress, and stopped by Ctrl-C.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "module.h"
#include "peft/execute.h"

namespace peft::python {

// What the caller sees of a run, and how it stops it. Shared by both threads.
struct RunState {
  std::atomic<std::uint64_t> done = 0, total = 0;
  std::atomic<bool> cancel = false, writing = false;

  // Options of execute() with progress and cancellation of this run.
  ExecuteOptions with_hooks(ExecuteOptions options);
  // Carries a plan out with them. Once it was cancelled, nothing is written.
  ExecuteReport execute(const Plan& plan, const std::string& out, ExecuteOptions options);
};

// Calls work(state) in a thread of its own, without the GIL; waits, calls progress(done, total) and lets signals in. An
// exception of `progress`, or KeyboardInterrupt, stops the work, and is raised once nothing more is written.
// `may_outlive`: the work holds nothing of the caller, so that a part that cannot be stopped need not be waited for.
void run(nb::handle progress, bool may_outlive, std::function<void(RunState&)> work);

// The same with a result.
template <class Result>
Result run_for(nb::handle progress, bool may_outlive, std::function<Result(RunState&)> work) {
  const auto result = std::make_shared<std::optional<Result>>();
  run(progress, may_outlive, [result, work = std::move(work)](RunState& state) { *result = work(state); });
  return std::move(**result);
}

void add_run(nb::module_& module);

}  // namespace peft::python
