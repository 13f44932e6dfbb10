// Norms of packed factors: the same bits however the factors are packed, since a result at the limit that they give is
// mended or not.
#include "execute/kernels/pack_factors.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "execute/kernels/bf16_pairs.h"
#include "execute/merge/inputs/line_buffer.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

constexpr std::int64_t kRows = 11, kCols = 100;

std::uint32_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }

double norm_of(const FactorSource& source, std::int64_t count, std::int64_t step) {
  double sum = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const auto word = std::to_integer<std::uint32_t>(source.data[k * step]) |
                      std::to_integer<std::uint32_t>(source.data[k * step + 1]) << 8;
    const auto value = static_cast<double>(std::bit_cast<float>(word << 16));
    sum += value * value;
  }
  return std::sqrt(sum);
}

TEST(MergePack, NormsHaveTheSameBitsInPairs) {
  if (!has_pair_products()) GTEST_SKIP() << "this processor has no products of pairs";
  for (const std::int64_t rank : {1, 2, 3, 7, 8, 31, 32, 33, 64, 65, 200}) {
    PlanBuilder builder(static_cast<std::uint32_t>(rank));
    const View left = builder.normal(Dtype::bf16, kRows, rank, 0.1),
               right = builder.normal(Dtype::bf16, rank, kCols, 0.1);
    const Plan plan = builder.make();
    const FactorSource rows = source_of(plan, left), cols = source_of(plan, right);
    const auto width = static_cast<std::size_t>(rank), pairs = pairs_of(width);
    LineBuffer<float> plain;
    LineBuffer<double> wide;
    LineBuffer<std::uint32_t> words;
    float plain_norms[kRows], wide_norms[kRows], pair_norms[kRows];
    bool safe = true;
    pack_left(rows, rank, 0, kRows, plain.resize(kRows * width), plain_norms);
    pack_left(rows, rank, 0, kRows, wide.resize(kRows * width), wide_norms);
    pair_left(rows, rank, 0, kRows, words.resize(kRows * pairs), pair_norms, safe);
    for (std::int64_t i = 0; i < kRows; ++i) {
      EXPECT_EQ(bits(plain_norms[i]), bits(pair_norms[i])) << "rank " << rank << " row " << i;
      EXPECT_EQ(bits(wide_norms[i]), bits(pair_norms[i])) << "rank " << rank << " row " << i;
      FactorSource row = rows;
      row.data += i * row.row_stride;
      const double exact = norm_of(row, rank, row.col_stride);
      EXPECT_NEAR(static_cast<double>(plain_norms[i]), exact, exact * 1e-5);
    }
    for (std::int64_t panel = 0; panel < 2; ++panel) {
      const float plain_norm = pack_right(cols, rank, kCols, panel, plain.resize(width * kPanel));
      EXPECT_EQ(bits(plain_norm), bits(pair_right(cols, rank, kCols, panel, words.resize(pairs * kPanel), safe)))
          << "rank " << rank << " panel " << panel;
      EXPECT_EQ(bits(plain_norm), bits(pack_right(cols, rank, kCols, panel, wide.resize(width * kPanel))))
          << "rank " << rank << " panel " << panel;
      double most = 0;
      for (std::int64_t j = panel * 64; j < std::min<std::int64_t>(kCols, panel * 64 + 64); ++j) {
        FactorSource col = cols;
        col.data += j * col.col_stride;
        most = std::max(most, norm_of(col, rank, col.row_stride));
      }
      EXPECT_NEAR(static_cast<double>(plain_norm), most, most * 1e-5);
    }
  }
}

}  // namespace
}  // namespace peft::execution
