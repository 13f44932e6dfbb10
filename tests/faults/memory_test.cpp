// F11: no memory.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "faults/job.h"
#include "peft/error.h"

namespace {

std::atomic<bool> counting{false}, persistent{false};
std::atomic<long long> allocations{0}, fail_at{0};

void* allocate(std::size_t size, std::size_t alignment) {
  if (counting) {
    const long long number = ++allocations;
    if (number == fail_at || (persistent && number > fail_at)) return nullptr;
  }
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size == 0 ? 1 : size);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

[[gnu::noinline]] void release(void* memory) { std::free(memory); }

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  if (void* memory = allocate(size, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return allocate_or_throw(size, 1); }
void* operator new[](std::size_t size) { return allocate_or_throw(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocate(size, 1); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocate(size, 1); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { release(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { release(memory); }

namespace peft::faults {
namespace {

// Allocations from the n-th one on fail, or it alone. Whether the run came so far.
bool run_without_memory(const Job& job, long long n, bool from_then_on, int threads, std::optional<Error>& thrown) {
  const ExecuteOptions options = resuming(threads);
  allocations = 0;
  fail_at = n;
  persistent = from_then_on;
  bool out_of_memory = false;
  std::optional<ErrorCode> code;
  counting = true;
  try {
    const Plan plan = job.plan();
    execute(plan, job.out(), options);
  } catch (const Error& error) {
    code = error.code();
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
  }
  counting = false;
  if (code) thrown = Error(*code, {});
  if (out_of_memory) thrown = Error(ErrorCode::OUT_MEMORY, {.problem = "out of memory"});
  return allocations >= n;
}

TEST(Faults, F11EveryAllocationFails) {
  const Job job({.shards = 2, .tensors = 4, .rows = 8});
  long long points = 0, failed = 0;
  for (const int threads : {1, 3}) {
    for (const bool from_then_on : {false, true}) {
      const long long step = threads == 1 ? 1 : 7;
      for (long long n = 1;; n += step) {
        SCOPED_TRACE(testing::Message() << "allocation " << n << (from_then_on ? " and all later" : "") << ", "
                                        << threads << " threads");
        job.clean();
        std::optional<Error> thrown;
        if (!run_without_memory(job, n, from_then_on, threads, thrown)) break;
        ++points;
        ASSERT_EQ(job.check(), "");
        if (thrown) {
          ++failed;
          EXPECT_EQ(info(thrown->code()).exit_code, 3) << thrown->what();
          EXPECT_TRUE(job.expected() == contents_of(job.out()) || !run(job, resuming()));
        }
        ASSERT_EQ(contents_of(job.out()), job.expected());
      }
    }
  }
  EXPECT_GT(failed, 500);
  add_row("F11", "each allocation fails, alone or with all later ones; 1 and 3 threads", points,
          "exit 3 or not needed; then identical");
}

TEST(Faults, F11AddressSpace) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer needs terabytes of addresses";
#endif
  const Job job({.shards = 4, .tensors = 8, .rows = 2000});
  int points = 0, enough = 0;
  for (long long mib = 0; mib <= 96; mib += 2, ++points) {
    job.clean();
    const pid_t child = ::fork();
    if (child == 0) {
      long long pages = 0;
      std::FILE* file = std::fopen("/proc/self/statm", "r");
      if (file == nullptr || std::fscanf(file, "%lld", &pages) != 1) ::_exit(98);
      const auto now = static_cast<rlim_t>(pages * ::sysconf(_SC_PAGESIZE));
      const rlimit limit{now + static_cast<rlim_t>(mib << 20), now + static_cast<rlim_t>(mib << 20)};
      ::setrlimit(RLIMIT_AS, &limit);
      std::optional<Error> error;
      try {
        error = run(job, resuming(2));
      } catch (const std::bad_alloc&) {
        ::_exit(3);
      }
      ::_exit(error ? info(error->code()).exit_code : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status) << " with " << mib << " MiB";
    EXPECT_TRUE(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3) << WEXITSTATUS(status);
    enough += WEXITSTATUS(status) == 0 ? 1 : 0;
    ASSERT_EQ(job.check(), "");
    EXPECT_TRUE(WEXITSTATUS(status) == 0 || !run(job, resuming()));
    ASSERT_TRUE(job.is_complete());
  }
  EXPECT_GT(enough, 0);
  EXPECT_LT(enough, points);
  add_row("F11", "RLIMIT_AS from nothing to 96 MiB more", points,
          std::to_string(enough) + " done, others exit 3; then identical");
}

}  // namespace
}  // namespace peft::faults
