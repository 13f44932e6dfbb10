// A few threads for one piece of work. Made where it is needed, gone afterwards; nothing global.
#pragma once

#include <cstddef>
#include <functional>

namespace peft {

// What `threads` of an options struct means: that many, or one per core for 0. At most kMaxThreads.
inline constexpr int kMaxThreads = 256;
int thread_count(int requested);

// Calls task(index, worker) for every index below `count`, each once, from `threads` workers (the caller is one of
// them) that take the lowest index not yet taken. Returns when all are done. When a task throws, no further task
// starts, and the first exception is thrown again here after every worker has stopped.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t index, int worker)>& task);

}  // namespace peft
