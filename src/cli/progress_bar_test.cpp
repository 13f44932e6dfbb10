#include "cli/progress_bar.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace peft::cli
