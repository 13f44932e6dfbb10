#include "plan/check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "peft/error.h"

namespace peft::plan {
namespace {

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

// A source with "f" BF16 [4, 6], "i" I32 [2, 2], "s" F4 [2, 4], and a plan that copies each.
class CheckTest : public testing::Test {
 protected:
  CheckTest() {
    const std::string header =
        R"({"f":{"dtype":"BF16","shape":[4,6],"data_offsets":[0,48]},"i":{"dtype":"I32","shape":[2,2],"data_offsets":[48,64]},)"
        R"("s":{"dtype":"F4","shape":[2,4],"data_offsets":[64,68]}})";
    const std::uint64_t length = header.size();
    image_.resize(8 + header.size() + 68);
    std::memcpy(image_.data(), &length, 8);
    std::memcpy(image_.data() + 8, header.data(), header.size());
    plan_.sources.push_back(TensorFile::parse(image_, "source.safetensors"));
    PlannedFile file;
    file.name = "out.safetensors";
    file.tensors.push_back({"f", Dtype::bf16, {4, 6}, 4, 6, {{0, 0, 1, {0, 0, 0, 4, 6, 6, 1}, 1}}});
    file.tensors.push_back({"i", Dtype::i32, {2, 2}, 2, 2, {{0, 0, 1, {0, 1, 0, 2, 2, 2, 1}, 1}}});
    file.tensors.push_back({"s", Dtype::f4, {2, 4}, 2, 4, {{0, 0, 1, {0, 2, 0, 2, 4, 4, 1}, 1}}});
    plan_.files.push_back(file);
  }

  PlannedTensor& f() { return plan_.files[0].tensors[0]; }
  PlannedTensor& i() { return plan_.files[0].tensors[1]; }
  PlannedTensor& s() { return plan_.files[0].tensors[2]; }

  // The name of the tensor that is refused; "" if the plan is accepted.
  std::string refused() {
    try {
      check(plan_);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::INTERNAL);
      EXPECT_EQ(error.detail().file, "out.safetensors");
      return error.detail().tensor;
    }
    return {};
  }

  std::vector<std::byte> image_;
  Plan plan_;
};

TEST_F(CheckTest, AcceptsCopiesGapsAndConversions) {
  EXPECT_EQ(refused(), "");
  f().dtype = Dtype::f32;
  f().blocks[0].scale = 0.5;
  f().blocks[0].source.rows = 2;
  EXPECT_EQ(refused(), "");
}

TEST_F(CheckTest, RefusesBlocksThatLeaveTheirTensor) {
  const std::function<void(Block&)> faults[] = {
      [](Block& b) { b.row = 1; },          [](Block& b) { b.row = -1; },         [](Block& b) { b.col = 1; },
      [](Block& b) { b.col = -1; },         [](Block& b) { b.col_step = 2; },     [](Block& b) { b.col_step = 0; },
      [](Block& b) { b.row = kHuge; },      [](Block& b) { b.col_step = kHuge; }, [](Block& b) { b.source.rows = 0; },
      [](Block& b) { b.source.cols = -1; }, [](Block& b) { b.scale = HUGE_VAL; },
  };
  const Block good = f().blocks[0];
  for (const auto& fault : faults) {
    f().blocks[0] = good;
    fault(f().blocks[0]);
    EXPECT_EQ(refused(), "f") << &fault - faults;
  }
}

TEST_F(CheckTest, RefusesViewsThatLeaveTheirSource) {
  const std::function<void(View&)> faults[] = {
      [](View& v) { v.source = 1; },          [](View& v) { v.tensor = 3; },         [](View& v) { v.offset = 1; },
      [](View& v) { v.offset = -1; },         [](View& v) { v.row_stride = 7; },     [](View& v) { v.col_stride = 2; },
      [](View& v) { v.row_stride = -6; },     [](View& v) { v.row_stride = kHuge; }, [](View& v) { v.offset = kHuge; },
      [](View& v) { v.col_stride = -kHuge; },
  };
  const View good = f().blocks[0].source;
  for (const auto& fault : faults) {
    f().blocks[0].source = good;
    fault(f().blocks[0].source);
    EXPECT_EQ(refused(), "f") << &fault - faults;
  }
}

// Rows 0 and 1 of the source take turns with zeros, and its rows 2 and 3.
TEST_F(CheckTest, RefusesMembersThatDoNotHoldTogether) {
  f().rows = 2, f().cols = 12, f().shape = {2, 12};
  f().blocks[0] = {0, 0, 3, {0, 0, 0, 2, 4, 6, 1}, 1, {}, 0, 1, {{0, 0, 0}, {0, 0, Origin::kZeros}, {0, 0, 12}}};
  EXPECT_EQ(refused(), "");
  const std::function<void(Block&)> faults[] = {
      [](Block& b) { b.members[2].offset = 15; },  // leaves its source
      [](Block& b) { b.members[2].tensor = 1; },   // of another dtype
      [](Block& b) { b.members[2].source = 1; },   // no source
      [](Block& b) { b.members[2].offset = -2; },  // before its source
      [](Block& b) { b.members[0].offset = 1; },   // not the block's source
      [](Block& b) {
        b.members.resize(4, {0, 0, 0});
      },                                      // leaves its planned tensor
      [](Block& b) { b.col_step = 2; },       // members overlap
      [](Block& b) { b.col_shift = 0; },      // the same
      [](Block& b) { b.col_shift = -1; },     // leaves its planned tensor
      [](Block& b) { b.col_shift = kHuge; },  // the same
      [](Block& b) { b.row_shift = kHuge; },  // the same
      [](Block& b) {
        b.members.assign(3, {0, 0, Origin::kZeros});
      }  // nothing but zeros
  };
  const Block good = f().blocks[0];
  for (const auto& fault : faults) {
    f().blocks[0] = good;
    fault(f().blocks[0]);
    EXPECT_EQ(refused(), "f") << &fault - faults;
  }
  f().blocks[0] = good;
  f().blocks.push_back({0, 1, 3, {0, 0, 0, 2, 4, 6, 1}, 1});
  EXPECT_EQ(refused(), "f") << "the zeros belong to the block";
  f().blocks.pop_back();
  f().merge = Merge{};
  EXPECT_EQ(refused(), "f");
}

TEST_F(CheckTest, AcceptsMembersInRowsAndSideBySide) {
  f().blocks[0] = {0, 0, 1, {0, 0, 0, 1, 6, 6, 1}, 1, {}, 1, 0, {{0, 0, 18}, {0, 0, 12}, {0, 0, 6}, {0, 0, 0}}};
  f().blocks[0].source.offset = 18;
  EXPECT_EQ(refused(), "");
  f().blocks[0] = {0, 0, 1, {0, 0, 3, 4, 3, 6, 1}, 1, {}, 0, 3, {{0, 0, 3}, {0, 0, 0}}};
  EXPECT_EQ(refused(), "");
}

// Columns 0, 2, 4 and 1, 3, 5 of a source.
TEST_F(CheckTest, RefusesColumnGroupsWhoseTensorsAreNotAlike) {
  PlannedTensor odd{"odd", Dtype::bf16, {4, 3}, 4, 3, {{0, 0, 1, {0, 0, 1, 4, 3, 6, 2}, 1}}};
  odd.column_group = 5;
  f() = odd;
  f().name = "f";
  f().blocks[0].source.offset = 0;
  plan_.files[0].tensors.push_back(odd);
  EXPECT_EQ(refused(), "");
  const std::function<void(PlannedTensor&)> faults[] = {
      [](PlannedTensor& t) { t.dtype = Dtype::f32; },
      [](PlannedTensor& t) { t.blocks[0].scale = 2; },
      [](PlannedTensor& t) { t.blocks[0].source.row_stride = 3; },
      [](PlannedTensor& t) { t.blocks[0].source.col_stride = 1; },
      [](PlannedTensor& t) { t.blocks.clear(); },
      [](PlannedTensor& t) { t.merge = Merge{}; },
      [](PlannedTensor& t) { t.blocks[0].source.rows = 3; },
      [](PlannedTensor& t) {
        t.blocks = {{0, 0, 1, {0, 0, 0, 4, 1, 6, 2}, 1}, {0, 1, 1, {0, 0, 0, 4, 2, 6, 2}, 1}};
      },
  };
  for (const auto& fault : faults) {
    plan_.files[0].tensors.back() = odd;
    fault(plan_.files[0].tensors.back());
    EXPECT_EQ(refused(), "odd") << &fault - faults;
  }
}

TEST_F(CheckTest, AcceptsAViewThatRunsBackwards) {
  f().blocks[0].source = {0, 0, 23, 4, 6, -6, -1};
  EXPECT_EQ(refused(), "");
}

TEST_F(CheckTest, RefusesConversionsOfIntegersAndOfPartsOfBytes) {
  i().blocks[0].scale = 2;
  EXPECT_EQ(refused(), "i");
  i().blocks[0].scale = 1;
  i().dtype = Dtype::f32;
  EXPECT_EQ(refused(), "i");
  i().dtype = Dtype::i32;
  s().blocks[0].source.rows = 1;
  EXPECT_EQ(refused(), "s");
}

TEST_F(CheckTest, RefusesShapesThatAreNotRowsByColumns) {
  const auto with_shape = [&](std::vector<std::int64_t> shape, std::int64_t rows, std::int64_t cols) {
    f() = {"f", Dtype::bf16, std::move(shape), rows, cols, {}};
    return refused();
  };
  EXPECT_EQ(with_shape({}, 1, 1), "");
  EXPECT_EQ(with_shape({5}, 1, 5), "");
  EXPECT_EQ(with_shape({2, 3, 4}, 6, 4), "");
  EXPECT_EQ(with_shape({0, 4}, 0, 4), "");
  EXPECT_EQ(with_shape({2, 3, 4}, 2, 12), "");  // a kernel: all but the first dimension
  EXPECT_EQ(with_shape({2, 3, 4}, 1, 24), "");
  EXPECT_EQ(with_shape({2, 3, 4}, 3, 8), "");  // two rows that follow each other, taken together
  EXPECT_EQ(with_shape({2, 3, 4}, 8, 3), "f");
  EXPECT_EQ(with_shape({2, 3, 4}, 4, 6), "f");
  EXPECT_EQ(with_shape({4, 6}, 4, 5), "f");
  EXPECT_EQ(with_shape({-4, -6}, 4, 6), "f");
  EXPECT_EQ(with_shape({kHuge, 2}, kHuge, 2), "f");
  EXPECT_EQ(with_shape({kHuge / 8, 1}, kHuge / 8, 1), "f");
}

TEST_F(CheckTest, RefusesOverlapsUnknownTypesAndEqualNames) {
  f().blocks.push_back(f().blocks[0]);
  EXPECT_EQ(refused(), "f");
  f().blocks.pop_back();
  f().dtype = Dtype::unknown;
  EXPECT_EQ(refused(), "f");
  f().dtype = Dtype::bf16;
  i().name = "f";
  EXPECT_EQ(refused(), "f");
}

}  // namespace
}  // namespace peft::plan
