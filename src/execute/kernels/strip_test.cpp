// Strips against plain loops, bit for bit: every rule, base and kind of factor, and the numbers that need care.
#include "execute/kernels/strip.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/float_formats.h"
#include "execute/kernels/bf16_pairs.h"
#include "execute/merge/inputs/line_buffer.h"
#include "execute/values/element.h"
#include "support/every_target.h"

namespace peft::execution {
namespace {

struct Case {
  AddOptions options;
  bool paired = false;
  std::size_t rank = 8, rows = 8, begin = 0, end = 2 * kPanel;
  float limit = 0;  // of each row and panel, times 1 + row + 10 * panel; 0: none are looked for
};

class StripTest {
 public:
  explicit StripTest(const Case& c, std::uint32_t seed = 1) : c_(c), random_(seed) {
    size_ = c.options.base == Dtype::f32 ? 4 : 2;
    panels_ = (c.end + kPanel - 1) / kPanel;
    a_.resize(c.rank * panels_ * kPanel), b_.resize(c.rows * c.rank);
    for (float& value : a_) value = factor();
    for (float& value : b_) value = factor();
    base_.resize(c.rows * pitch()), out_.resize(c.rows * pitch(), std::byte{0xAB});
    for (std::size_t i = 0; i < c.rows; ++i)
      for (std::size_t j = c.begin; j < c.end; ++j) set_weight(i, j, normal_(random_) * 0.02F);
  }

  float factor() { return bf16_to_float(float_to_bf16(normal_(random_) * 0.1F)); }
  void set_weight(std::size_t i, std::size_t j, float value) { store_element(c_.options.base, value, at(base_, i, j)); }
  void clear_row_of_b(std::size_t i) { std::fill_n(&b_[i * c_.rank], c_.rank, 0.0F); }
  void scale_row_of_b(std::size_t i, float by) {
    for (std::size_t k = 0; k < c_.rank; ++k)
      b_[i * c_.rank + k] = bf16_to_float(float_to_bf16(b_[i * c_.rank + k] * by));
  }

  // Runs the strip and compares everything.
  void expect_right() {
    const StripResult result = run();
    bool finite = true, marked = false;
    for (std::size_t i = 0; i < c_.rows; ++i) {
      for (std::size_t j = c_.begin; j < c_.end; ++j) {
        const float value = expected(i, j);
        std::byte bytes[4];
        store_element(c_.options.base, value, bytes);
        const bool is_number = std::isfinite(load_element(c_.options.base, bytes));
        finite &= is_number;
        if (is_number) {
          ASSERT_EQ(std::memcmp(bytes, at(out_, i, j), size_), 0) << i << " " << j << " " << value;
        }
        const bool is_suspect = std::fabs(value) < limit(i, j / kPanel);
        marked |= is_suspect;
        if (c_.limit > 0) {
          ASSERT_EQ(cancelled_[j / kPanel * kTileRows + i] >> j % kPanel & 1, is_suspect)
              << i << " " << j << " " << value;
        }
      }
      for (std::size_t j = 0; j < c_.begin * size_; ++j) ASSERT_EQ(out_[i * pitch() + j], std::byte{0xAB});
      for (std::size_t j = c_.end * size_; j < pitch(); ++j) ASSERT_EQ(out_[i * pitch() + j], std::byte{0xAB});
    }
    EXPECT_EQ(result.finite, finite);
    EXPECT_EQ(result.marked, marked);
  }

 private:
  std::size_t pitch() const { return panels_ * kPanel * size_; }
  std::byte* at(std::vector<std::byte>& bytes, std::size_t i, std::size_t j) { return &bytes[i * pitch() + j * size_]; }
  float limit(std::size_t i, std::size_t panel) const {
    return c_.limit * static_cast<float>(1 + i) * static_cast<float>(1 + 10 * panel);
  }

  float rounded(float value) const {
    std::byte bytes[4];
    store_element(c_.options.base, value, bytes);
    return static_cast<float>(load_element(c_.options.base, bytes));
  }
  float expected(std::size_t i, std::size_t j) {
    float d = 0;
    for (std::size_t k = 0; k < c_.rank; ++k) d = std::fma(b_[i * c_.rank + k], a_[k * panels_ * kPanel + j], d);
    const auto w = static_cast<float>(load_element(c_.options.base, at(base_, i, j)));
    const auto scale = static_cast<float>(c_.options.scale);
    switch (c_.options.rule) {
      case AddRule::fused:
        return std::fma(scale, d, w);
      case AddRule::plain:
        return w + d * scale;
      case AddRule::delta_rounded:
        return w + rounded(d * scale);
      case AddRule::taken_out:
        return w - rounded(d * scale);
    }
    return 0;
  }

  StripResult run() {
    const std::size_t pairs = pairs_of(c_.rank), width = c_.paired ? pairs : c_.rank;
    float* left = left_.resize(c_.rows * width);
    float* right = right_.resize(panels_ * width * kPanel);
    const auto word = [](float high, float low) {
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(high) | std::bit_cast<std::uint32_t>(low) >> 16);
    };
    const auto b = [&](std::size_t i, std::size_t k) { return k < c_.rank ? b_[i * c_.rank + k] : 0.0F; };
    const auto a = [&](std::size_t k, std::size_t j) { return k < c_.rank ? a_[k * panels_ * kPanel + j] : 0.0F; };
    for (std::size_t i = 0; i < c_.rows; ++i)
      for (std::size_t k = 0; k < width; ++k) {
        const float value = c_.paired ? word(b(i, 2 * k), b(i, 2 * k + 1)) : b(i, k);
        std::memcpy(&left[i * width + k], &value, sizeof value);
      }
    for (std::size_t j = 0; j < panels_ * kPanel; ++j)
      for (std::size_t k = 0; k < width; ++k) {
        const float value = c_.paired ? word(a(2 * k, j), a(2 * k + 1, j)) : a(k, j);
        std::memcpy(&right[(j / kPanel * width + k) * kPanel + j % kPanel], &value, sizeof value);
      }
    row_limits_.clear(), panel_limits_.clear();
    for (std::size_t i = 0; i < c_.rows; ++i) row_limits_.push_back(c_.limit * static_cast<float>(1 + i));
    for (std::size_t p = 0; p < panels_; ++p) panel_limits_.push_back(static_cast<float>(1 + 10 * p));
    cancelled_.assign(panels_ * kTileRows, ~std::uint64_t{0});
    Strip strip{.paired = c_.paired,
                .width = width,
                .left = left,
                .right = right,
                .rows = c_.rows,
                .begin = c_.begin,
                .end = c_.end,
                .base = at(base_, 0, c_.begin),
                .base_pitch = static_cast<std::int64_t>(pitch()),
                .out = at(out_, 0, c_.begin),
                .out_pitch = static_cast<std::int64_t>(pitch())};
    if (c_.limit > 0)
      strip.row_limits = row_limits_.data(), strip.panel_limits = panel_limits_.data(),
      strip.cancelled = cancelled_.data();
    return merge_strip(c_.options, strip);
  }

  Case c_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::size_t size_ = 2, panels_ = 1;
  std::vector<float> a_, b_, row_limits_, panel_limits_;
  std::vector<std::byte> base_, out_;
  std::vector<std::uint64_t> cancelled_;
  LineBuffer<float> left_, right_;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const bool paired : {false, true}) {
    if (paired && !has_pair_products()) continue;
    for (const Dtype base : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
      for (const AddRule rule : {AddRule::fused, AddRule::plain, AddRule::delta_rounded, AddRule::taken_out}) {
        for (const float limit : {0.0F, 1e-4F}) {
          if (limit > 0 && rule != AddRule::fused) continue;
          for (const std::size_t rank : {1, 2, 3, 6, 7, 8, 9, 12, 13, 16, 18, 33}) {
            for (const std::size_t rows : {1, 3, 6, 8})
              cases.push_back({{rule, base, 0.75}, paired, rank, rows, 0, 3 * kPanel, limit});
            cases.push_back({{rule, base, -1.5}, paired, rank, 5, 3, 2 * kPanel + 1, limit});
            cases.push_back({{rule, base, -1.5}, paired, rank, 5, 10, 20, limit});
          }
        }
      }
    }
  }
  return cases;
}

class MergeStrip : public EveryTarget {};

TEST_P(MergeStrip, OrdinaryNumbers) {
  for (const Case& c : all_cases()) StripTest(c).expect_right();
}

TEST_P(MergeStrip, NumbersThatNeedCare) {
  for (const Case& c : all_cases()) {
    StripTest test(c, 2);
    const std::size_t last = c.rows - 1;
    test.clear_row_of_b(last);  // the results of this row are its weights
    const std::size_t j = c.begin + (c.end - c.begin) / 2;
    test.set_weight(last, j, c.options.base == Dtype::f16 ? 0x1p-24F : 0x1p-130F);  // subnormal
    test.set_weight(last, j + 1, 0);
    test.set_weight(last, j + 2, -0.0F);
    test.set_weight(last, j + 3, c.options.base == Dtype::f16 ? 65504.0F : 0x1.fep127F);  // the largest
    test.expect_right();
  }
}

// One result among large ones, so near to the limit that rounding decides on which side it is.
TEST_P(MergeStrip, NearTheLimit) {
  const float below = 0x1.04p-10F, last_place = 0x1p-17F;  // a bf16
  for (const bool paired : {false, has_pair_products()}) {
    for (const std::size_t rank : {1, 8, 9, 33}) {
      for (const std::size_t row : {0, 5}) {
        Case c{{AddRule::fused, Dtype::bf16, 0.75}, paired, rank, row + 1, 0, kPanel};
        c.limit = (below + 0.9F * last_place) / static_cast<float>(1 + row);  // of the row
        for (std::uint32_t seed = 0; seed < 50; ++seed) {
          StripTest test(c, seed);
          for (std::size_t i = 0; i <= row; ++i) {
            test.scale_row_of_b(i, 0x1p-9F);
            for (std::size_t j = 0; j < kPanel; ++j) test.set_weight(i, j, 1);
          }
          test.set_weight(row, seed, below);
          test.expect_right();
        }
      }
    }
  }
}

TEST_P(MergeStrip, NoNumber) {
  for (const Case& c : all_cases()) {
    for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      StripTest test(c, 3);
      test.set_weight(c.rows - 1, c.end - 1, value);
      test.expect_right();
    }
  }
}

// One strip in fp64: rank and columns as given, beside the same sums by plain loops.
void expect_right_in_fp64(Dtype out, std::size_t rank, std::size_t rows, std::size_t begin, std::size_t end,
                          float special) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const std::size_t panels = (end + kPanel - 1) / kPanel, pitch = panels * kPanel;
  const auto size = static_cast<std::size_t>(element_size(out));
  LineBuffer<double> left, right;
  left.resize(rows * rank), right.resize(panels * rank * kPanel);
  for (std::size_t i = 0; i < rows * rank; ++i) left.get()[i] = static_cast<double>(normal(random));
  for (std::size_t i = 0; i < panels * rank * kPanel; ++i) right.get()[i] = static_cast<double>(normal(random) * 0.01F);
  std::vector<float> base(rows * pitch);
  for (float& weight : base) weight = normal(random);
  base[(rows - 1) * pitch + end - 1] = special;
  std::vector<std::byte> made(rows * pitch * size, std::byte{0xAB}), in_place(rows * pitch * sizeof(float));
  std::memcpy(in_place.data(), base.data(), in_place.size());
  Strip strip{.width = rank, .left = left.get(), .right = right.get(), .rows = rows, .begin = begin, .end = end};
  strip.base = reinterpret_cast<const std::byte*>(&base[begin]),
  strip.base_pitch = static_cast<std::int64_t>(4 * pitch);
  strip.out = &made[begin * size], strip.out_pitch = static_cast<std::int64_t>(size * pitch);
  const StripResult result = merge_strip_in_fp64(-1.5, out, strip);
  bool finite = true;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = begin; j < end; ++j) {
      double d = 0;
      for (std::size_t k = 0; k < rank; ++k)
        d = std::fma(left.get()[i * rank + k], right.get()[(j / kPanel * rank + k) * kPanel + j % kPanel], d);
      const auto value = static_cast<float>(std::fma(-1.5, d, static_cast<double>(base[i * pitch + j])));
      std::byte bytes[4];
      store_element(out, static_cast<double>(value), bytes);
      finite &= std::isfinite(load_element(out, bytes));
      if (!std::isfinite(value)) continue;
      ASSERT_EQ(std::memcmp(bytes, &made[(i * pitch + j) * size], size), 0) << i << " " << j << " " << value;
    }
    for (std::size_t j = 0; j < begin * size; ++j) ASSERT_EQ(made[i * pitch * size + j], std::byte{0xAB});
    for (std::size_t j = end * size; j < pitch * size; ++j) ASSERT_EQ(made[i * pitch * size + j], std::byte{0xAB});
  }
  EXPECT_EQ(result.finite, finite);
  EXPECT_FALSE(result.marked);
  if (out != Dtype::f32) return;
  strip.base = strip.out = &in_place[begin * size], strip.out_pitch = strip.base_pitch;
  merge_strip_in_fp64(-1.5, out, strip);
  for (std::size_t i = 0; i < rows; ++i) {
    ASSERT_EQ(
        std::memcmp(&in_place[(i * pitch + begin) * size], &made[(i * pitch + begin) * size], (end - begin) * size), 0)
        << "in place, row " << i;
  }
}

TEST_P(MergeStrip, InFp64) {
  for (const Dtype out : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
    for (const std::size_t rank : {1, 3, 16, 33}) {
      for (const std::size_t rows : {1, 2, 7, 8}) expect_right_in_fp64(out, rank, rows, 0, 3 * kPanel, 1);
      for (const float special : {1.0F, 60000.0F, 65519.0F, 65521.0F, 0x1.fffffep127F,
                                  -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        expect_right_in_fp64(out, rank, 5, 3, 2 * kPanel + 1, special);
        expect_right_in_fp64(out, rank, 5, 10, 20, special);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Hwy, MergeStrip, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

}  // namespace
}  // namespace peft::execution
