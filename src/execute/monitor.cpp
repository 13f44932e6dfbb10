#include "execute/monitor.h"

#include "peft/error.h"

namespace peft::execution {

void Monitor::check() const {
  if (options_.cancel == nullptr || !*options_.cancel) return;
  throw Error(ErrorCode::INTERRUPTED, {.problem = "stopped before the output was complete"});
}

void Monitor::add(std::uint64_t bytes) {
  const std::uint64_t done = done_ += bytes;
  if (options_.progress) options_.progress(done, total_);
}

}  // namespace peft::execution
