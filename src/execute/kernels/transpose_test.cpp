// Every target this CPU can run, against two plain loops, over random shapes, sizes and alignments.
#include "execute/kernels/transpose.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "support/every_target.h"

namespace peft::execution {
namespace {

constexpr std::byte kUntouched{0xEE};
constexpr std::size_t kGuard = 80;

// Rows at random places of one buffer, `gap` bytes or more apart, so that alignment and order vary.
struct Rows {
  std::vector<std::byte> bytes;
  std::vector<std::size_t> begin;
};

Rows scattered(std::size_t count, std::size_t row_bytes, std::mt19937& random) {
  Rows rows;
  std::size_t end = kGuard;
  for (std::size_t i = 0; i < count; ++i) {
    end += random() % 9;
    rows.begin.push_back(end);
    end += row_bytes;
  }
  std::shuffle(rows.begin.begin(), rows.begin.end(), random);
  rows.bytes.assign(end + kGuard, kUntouched);
  return rows;
}

std::vector<std::byte> run(bool scalar, std::size_t n_in, std::size_t n_out, std::size_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  Rows in = scattered(n_in, n_out * size, random), out = scattered(n_out, n_in * size, random);
  for (std::byte& b : in.bytes) b = std::byte(random());
  std::vector<const std::byte*> in_rows;
  std::vector<std::byte*> out_rows;
  for (std::size_t begin : in.begin) in_rows.push_back(in.bytes.data() + begin);
  for (std::size_t begin : out.begin) out_rows.push_back(out.bytes.data() + begin);
  (scalar ? transpose_scalar : transpose)(in_rows, out_rows, size);
  return out.bytes;
}

TEST_P(EveryTarget, EqualsTwoLoops) {
  std::mt19937 random(7);
  const std::size_t special[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257, 384};
  for (int round = 0; round < 400; ++round) {
    const std::size_t size = std::size_t{1} << (round % 4);
    const auto pick = [&] { return random() % 2 ? special[random() % std::size(special)] : 1 + random() % 300; };
    const std::size_t n_in = pick(), n_out = pick();
    const auto seed = static_cast<std::uint32_t>(random());
    ASSERT_EQ(run(false, n_in, n_out, size, seed), run(true, n_in, n_out, size, seed))
        << n_in << " rows of " << n_out << " elements of " << size << " bytes";
  }
}

TEST_P(EveryTarget, AcceptsNothing) {
  transpose({}, {}, 2);
  const std::byte row{};
  const std::byte* in = &row;
  std::byte* out = nullptr;
  transpose(std::span(&in, 1), {}, 2);
  transpose({}, std::span(&out, 1), 2);
}

INSTANTIATE_TEST_SUITE_P(Hwy, EveryTarget, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

// The scalar form itself, spelt out.
TEST(TransposeScalar, MovesElementIJToJI) {
  const std::uint16_t in[2][3] = {{1, 2, 3}, {4, 5, 6}};
  std::uint16_t out[3][2] = {};
  const std::byte* in_rows[] = {reinterpret_cast<const std::byte*>(in[0]), reinterpret_cast<const std::byte*>(in[1])};
  std::byte* out_rows[3];
  for (int j = 0; j < 3; ++j) out_rows[j] = reinterpret_cast<std::byte*>(out[j]);
  transpose_scalar(in_rows, out_rows, 2);
  const std::uint16_t expected[3][2] = {{1, 4}, {2, 5}, {3, 6}};
  EXPECT_EQ(std::memcmp(out, expected, sizeof out), 0);
}

}  // namespace
}  // namespace peft::execution
