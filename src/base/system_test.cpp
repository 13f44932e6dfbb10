#include "base/system.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace peft {
namespace {

TEST(ThreadCount, ZeroIsOnePerCore) {
  EXPECT_GE(thread_count(0), 1);
  EXPECT_GE(thread_count(-3), 1);
  EXPECT_EQ(thread_count(7), 7);
  EXPECT_EQ(thread_count(1 << 30), kMaxThreads);
}

TEST(ParallelFor, DoesEveryIndexOnce) {
  for (int threads : {-1, 0, 1, 2, 3, 7, 64}) {
    for (std::size_t count : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> done(count);
      std::atomic<int> largest_worker = 0;
      parallel_for(count, threads, [&](std::size_t index, int worker) {
        ++done[index];
        int seen = largest_worker;
        while (worker > seen && !largest_worker.compare_exchange_weak(seen, worker)) {
        }
      });
      for (const auto& times : done) ASSERT_EQ(times, 1);
      EXPECT_LT(largest_worker, std::max(threads, 1));
    }
  }
}

TEST(ParallelFor, StopsAndThrowsTheFirstExceptionOnce) {
  for (int threads : {1, 2, 7}) {
    std::atomic<int> started = 0;
    try {
      parallel_for(100'000, threads, [&](std::size_t index, int) {
        ++started;
        if (index == 10) throw std::runtime_error("ten");
        std::this_thread::yield();
      });
      FAIL() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()), "ten");
    }
    EXPECT_LT(started, 100'000);
  }
}

TEST(ParallelFor, SurvivesEveryTaskThrowing) {
  EXPECT_THROW(parallel_for(50, 7, [](std::size_t, int) { throw std::logic_error("all"); }), std::logic_error);
}

}  // namespace
}  // namespace peft
