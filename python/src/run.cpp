#include "run.h"

#include <chrono>
#include <exception>
#include <list>
#include <thread>

#include "cli/output/json.h"
#include "peft/error.h"

namespace peft::python {
namespace {

constexpr std::chrono::milliseconds kPeriod{50};

// A run, held by its thread and by its caller.
struct Shared {
  RunState state;
  std::mutex mutex;
  std::condition_variable changed;
  bool finished = false;
  std::optional<Error> error;
};

// Threads that were not waited for. They end before the interpreter does.
class Abandoned {
 public:
  static Abandoned& get() {
    static auto* const all = new Abandoned;  // never destroyed: a thread may outlast static objects
    return *all;
  }
  void add(std::thread thread) {
    const std::lock_guard lock(mutex_);
    threads_.push_back(std::move(thread));
  }
  void join() {
    std::list<std::thread> threads;
    {
      const std::lock_guard lock(mutex_);
      threads.swap(threads_);
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  std::mutex mutex_;
  std::list<std::thread> threads_;
};

void work_in_thread(Shared& shared, const std::function<void(RunState&)>& work) {
  std::optional<Error> error;
  try {
    work(shared.state);
  } catch (...) {
    error = cli::current_error();
  }
  const std::lock_guard lock(shared.mutex);
  shared.error = std::move(error);
  shared.finished = true;
  shared.changed.notify_all();
}

// Waits for a while; whether the work is finished.
bool wait(Shared& shared) {
  const nb::gil_scoped_release unlocked;
  std::unique_lock lock(shared.mutex);
  return shared.changed.wait_for(lock, kPeriod, [&] { return shared.finished; });
}

void tell(nb::handle progress, const RunState& state, std::uint64_t& told) {
  if (progress.is_none()) return;
  const std::uint64_t done = state.done, total = state.total;
  if (total == 0 || done == told) return;
  told = done;
  progress(done, total);
}

// Signals are handled and `progress` is called until the work is finished.
void attend(Shared& shared, nb::handle progress) {
  std::uint64_t told = UINT64_MAX;
  while (!wait(shared)) {
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    tell(progress, shared.state, told);
  }
  if (!shared.error) tell(progress, shared.state, told);
}

}  // namespace

ExecuteOptions RunState::with_hooks(ExecuteOptions options) {
  options.cancel = &cancel;
  options.progress = [this](std::uint64_t now, std::uint64_t all) {
    done = now;
    total = all;
  };
  return options;
}

ExecuteReport RunState::execute(const Plan& plan, const std::string& out, ExecuteOptions options) {
  writing = true;
  if (cancel) at({}).fail(ErrorCode::INTERRUPTED, {.problem = "stopped before anything was written"});
  return peft::execute(plan, out, with_hooks(std::move(options)));
}

void run(nb::handle progress, bool may_outlive, std::function<void(RunState&)> work) {
  const auto shared = std::make_shared<Shared>();
  std::thread thread([shared, work = std::move(work)] { work_in_thread(*shared, work); });
  try {
    attend(*shared, progress);
  } catch (...) {
    shared->state.cancel = true;
    // Reading and planning cannot be stopped, but they write nothing, and what follows sees `cancel`.
    while (!wait(*shared)) {
      if (!may_outlive || shared->state.writing) continue;
      Abandoned::get().add(std::move(thread));
      throw;
    }
    thread.join();
    throw;
  }
  thread.join();
  if (shared->error) throw *shared->error;
}

void add_run(nb::module_& module) {
  module.def("join_threads", [] {
    const nb::gil_scoped_release unlocked;
    Abandoned::get().join();
  });
}

}  // namespace peft::python
