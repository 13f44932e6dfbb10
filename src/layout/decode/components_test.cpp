#include "layout/decode/components.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace peft::layout {
namespace {

// Random matrices with random zero columns and rows, at every byte offset a file may give them.
TEST(ZeroScan, AgreesWithALoopOverElements) {
  std::mt19937 random(7);
  for (int round = 0; round < 400; ++round) {
    const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 13),
                       cols = 1 + static_cast<std::int64_t>(random() % 70);
    const bool wide = random() % 2 == 0;
    const std::size_t size = wide ? 4 : 2, shift = random() % 9;
    std::vector<std::byte> bytes(shift + static_cast<std::size_t>(rows * cols) * size);
    std::vector<bool> value(static_cast<std::size_t>(rows * cols));
    const auto zero_from = static_cast<std::int64_t>(random() % static_cast<unsigned>(cols + 1));
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const bool set = i % cols < zero_from && random() % 5 == 0;
      value[static_cast<std::size_t>(i)] = set;
      // What is not set is 0.0 or -0.0; what is set may be the smallest subnormal.
      const std::uint32_t sign = wide ? 0x80000000U : 0x8000U;
      const std::uint32_t bits = (set ? 1U : 0U) | (random() % 2 == 0 ? sign : 0U);
      std::memcpy(bytes.data() + shift + static_cast<std::size_t>(i) * size, &bits, size);
    }
    const StoredMatrix matrix{std::span(bytes).subspan(shift), wide ? Dtype::f32 : Dtype::bf16, rows, cols};
    const auto first = static_cast<std::int64_t>(random() % static_cast<unsigned>(rows + 1)), last = rows;
    const auto columns = nonzero_columns(matrix, first, last);
    const auto first_col = static_cast<std::int64_t>(random() % static_cast<unsigned>(cols + 1));
    const auto used_rows = nonzero_rows(matrix, first_col, cols);
    for (std::int64_t c = 0; c < cols; ++c) {
      bool any = false;
      for (std::int64_t r = first; r < last; ++r) any = any || value[static_cast<std::size_t>(r * cols + c)];
      EXPECT_EQ(columns[static_cast<std::size_t>(c)], any);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      bool any = false;
      for (std::int64_t c = first_col; c < cols; ++c) any = any || value[static_cast<std::size_t>(r * cols + c)];
      EXPECT_EQ(used_rows[static_cast<std::size_t>(r)], any);
    }
  }
}

}  // namespace
}  // namespace peft::layout
