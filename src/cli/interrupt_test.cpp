#include "cli/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>

namespace peft::cli {
namespace {

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
