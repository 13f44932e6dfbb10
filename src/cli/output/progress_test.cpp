#include "cli/output/progress.h"

#include <gtest/gtest.h>

#include <csignal>

namespace peft::cli {
namespace {

TEST(ProgressLine, shows_bytes_rate_and_time_left) {
  EXPECT_EQ(progress_line(0, 1000, 0), "[>                       ]   0%  0 B of 1000 B");
  EXPECT_EQ(progress_line(500, 1000, 2), "[============>           ]  50%  500 B of 1000 B  250 B/s  2.0 s left");
  EXPECT_EQ(progress_line(1000, 1000, 4), "[========================] 100%  1000 B of 1000 B  250 B/s");
}

TEST(ProgressLine, odd_totals_do_no_harm) {
  EXPECT_EQ(progress_line(0, 0, 1), "[========================] 100%  0 B of 0 B");
  EXPECT_EQ(progress_line(2000, 1000, 4), "[========================] 100%  1000 B of 1000 B  500 B/s");
}

TEST(Interrupt, first_signal_sets_the_flag) {
  const InterruptGuard guard;
  EXPECT_FALSE(guard.flag()->load());
  std::raise(SIGTERM);
  EXPECT_TRUE(guard.flag()->load());
}

TEST(InterruptDeathTest, second_signal_ends_the_process) {
  EXPECT_EXIT(
      {
        const InterruptGuard guard;
        std::raise(SIGINT);
        std::raise(SIGTERM);
      },
      testing::ExitedWithCode(5), "");
}

TEST(InterruptDeathTest, nothing_is_caught_without_a_guard) {
  EXPECT_EXIT(
      {
        { const InterruptGuard guard; }
        std::raise(SIGINT);
      },
      testing::KilledBySignal(SIGINT), "");
}

}  // namespace

}  // namespace peft::cli
