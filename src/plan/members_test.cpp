#include "plan/members.h"

#include <gtest/gtest.h>

#include <vector>

namespace peft::plan {
namespace {

// The lora_B [5, 3] of an expert: tensor number `tensor` of the source.
MemberView lora_b(std::uint32_t tensor, double scale = 1, Dtype dtype = Dtype::bf16) {
  return {{0, tensor, 0, 5, 3, 3, 1}, scale, dtype};
}

constexpr std::int64_t kExperts = 12;
constexpr MemberGrid kColumns{.row = 5, .col = 36, .col_step = kExperts, .col_shift = 1};

struct Single {
  std::int64_t row, col, col_step;
  View source;
  double scale;
  bool operator==(const Single&) const = default;
};

std::vector<Single> singles(const std::vector<Block>& blocks) {
  std::vector<Single> all;
  for (const Block& block : blocks) {
    block.for_each_member([&](const Block& member) {
      EXPECT_TRUE(member.members.empty());
      all.push_back({member.row, member.col, member.col_step, member.source, member.scale});
    });
  }
  return all;
}

TEST(AppendMembers, equal_members_become_one_block) {
  std::vector<MemberView> members;
  for (std::uint32_t e = 0; e < kExperts; ++e) members.push_back(lora_b(e, 0.5));
  std::vector<Block> blocks;
  append_members(blocks, kColumns, members);
  ASSERT_EQ(blocks.size(), 1u);
  EXPECT_EQ(blocks[0].num_members(), kExperts);
  EXPECT_EQ(blocks[0].row_end(), 10);
  const auto all = singles(blocks);
  ASSERT_EQ(all.size(), 12u);
  for (std::uint32_t e = 0; e < kExperts; ++e)
    EXPECT_EQ(all[e], (Single{5, 36 + e, kExperts, {0, e, 0, 5, 3, 3, 1}, 0.5})) << e;
}

TEST(AppendMembers, stacked_rows_follow_each_other) {
  std::vector<Block> blocks;
  append_members(blocks, {.row = 2, .row_shift = 5}, std::vector{lora_b(7), lora_b(8), lora_b(9)});
  ASSERT_EQ(blocks.size(), 1u);
  EXPECT_EQ(blocks[0].row_end(), 17);
  EXPECT_EQ(singles(blocks)[2], (Single{12, 0, 1, lora_b(9).view, 1}));
}

TEST(AppendMembers, missing_members_belong_to_the_run_before_them) {
  std::vector<MemberView> members(kExperts);
  for (const std::uint32_t e : {2u, 3u, 7u}) members[e] = lora_b(e);
  std::vector<Block> blocks;
  append_members(blocks, kColumns, members);
  ASSERT_EQ(blocks.size(), 1u);
  EXPECT_EQ(blocks[0].num_members(), kExperts);
  EXPECT_EQ(blocks[0].col, 36) << "the first one that is there need not be number 0";
  EXPECT_EQ(blocks[0].source, lora_b(2).view);
  const auto all = singles(blocks);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].col, 38);
  EXPECT_EQ(all[2].col, 43);
  blocks.clear();
  append_members(blocks, kColumns, std::vector<MemberView>(3));
  EXPECT_TRUE(blocks.empty());
}

TEST(AppendMembers, a_difference_begins_a_new_block) {
  MemberView other_stride = lora_b(4), other_shape = lora_b(5);
  other_stride.view.row_stride = 6;
  other_shape.view.cols = 2;
  const std::vector<MemberView> members = {lora_b(0),    lora_b(1),    lora_b(2, 2), {},
                                           lora_b(3, 2), other_stride, other_shape,  lora_b(6, 1, Dtype::f16)};
  std::vector<Block> blocks;
  append_members(blocks, kColumns, members);
  std::vector<std::int64_t> counts, columns;
  for (const Block& block : blocks) counts.push_back(block.num_members()), columns.push_back(block.col);
  EXPECT_EQ(counts, (std::vector<std::int64_t>{2, 3, 1, 1, 1}));
  EXPECT_EQ(columns, (std::vector<std::int64_t>{36, 38, 41, 42, 43}));
  EXPECT_TRUE(blocks.back().members.empty()) << "a member alone is an ordinary block";
  PlannedTensor tensor;
  tensor.blocks = blocks;
  EXPECT_EQ(count_views(tensor), 7u);
}

}  // namespace
}  // namespace peft::plan
