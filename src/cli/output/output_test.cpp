#include "cli/output/output.h"

#include <gtest/gtest.h>

#include "base/text.h"

namespace peft::cli {
namespace {

TEST(Units, bytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(80288), "78.4 KiB");
  EXPECT_EQ(human_bytes(999 * 1024), "999 KiB");
  EXPECT_EQ(human_bytes(1000 * 1024), "1.0 MiB");
  EXPECT_EQ(human_bytes(~std::uint64_t{0}), "16.0 EiB");
}

TEST(Units, digits_are_grouped) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
}

TEST(Units, seconds_change_their_unit) {
  EXPECT_EQ(human_seconds(0.0124), "12 ms");
  EXPECT_EQ(human_seconds(0.0996), "0.1 s");
  EXPECT_EQ(human_seconds(3.44), "3.4 s");
  EXPECT_EQ(human_seconds(59.96), "1:00");
  EXPECT_EQ(human_seconds(125), "2:05");
  EXPECT_EQ(human_seconds(3723), "1:02:03");
}

TEST(Units, shapes_and_widths) {
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{}), "[]");
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{8, 64}), "[8, 64]");
  EXPECT_EQ(text_width("a\u00e9\u2192"), 3u);
  EXPECT_EQ(short_number(16), "16");
  EXPECT_EQ(short_number(1.41421356), "1.41421");
}

}  // namespace
}  // namespace peft::cli
