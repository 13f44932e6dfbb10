#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "execute/resume/resume.h"

namespace peft::execution {
namespace {

TEST(Share, EveryFileIsInOnePart) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    std::vector<std::uint64_t> sizes(random() % 40);
    for (auto& size : sizes) size = random() % 5 == 0 ? 0 : random();
    const int parts = 1 + static_cast<int>(random() % 12);
    std::vector<int> times(sizes.size());
    for (int part = 1; part <= parts; ++part) {
      for (const std::size_t file : share_of(sizes, part, parts)) ++times[file];
    }
    EXPECT_EQ(times, std::vector<int>(sizes.size(), 1));
  }
}

TEST(Share, IsBalanced) {
  std::mt19937 random(2);
  std::vector<std::uint64_t> sizes(100);
  for (auto& size : sizes) size = 4'000'000'000 + random() % 1'000'000'000;
  const std::uint64_t all = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  for (int part = 1; part <= 8; ++part) {
    std::uint64_t bytes = 0;
    for (const std::size_t file : share_of(sizes, part, 8)) bytes += sizes[file];
    EXPECT_LT(bytes, all / 8 + 5'000'000'000);
    EXPECT_GT(bytes, all / 8 - 5'000'000'000);
  }
}

TEST(Share, SmallCases) {
  using Files = std::vector<std::size_t>;
  const std::uint64_t sizes[] = {10, 30, 20};
  EXPECT_EQ(share_of(sizes, 1, 1), (Files{0, 1, 2}));
  EXPECT_EQ(share_of(sizes, 1, 2), (Files{1}));
  EXPECT_EQ(share_of(sizes, 2, 2), (Files{0, 2}));
  EXPECT_EQ(share_of(sizes, 4, 5), Files{});
  EXPECT_EQ(share_of({}, 1, 2), Files{});
}

}  // namespace
}  // namespace peft::execution
