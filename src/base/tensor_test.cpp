#include "peft/tensor.h"

#include <gtest/gtest.h>

#include <set>

#include "base/checked.h"

namespace peft {
namespace {

TEST(Dtype, TableFollowsTheEnumAndNamesAreUnique) {
  ASSERT_EQ(dtypes().size(), 22u);
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < dtypes().size(); ++i) {
    const DtypeInfo& row = dtypes()[i];
    EXPECT_EQ(static_cast<std::size_t>(row.dtype), i) << row.name;
    EXPECT_EQ(&info(row.dtype), &row);
    EXPECT_EQ(parse_dtype(row.name), row.dtype);
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_TRUE(row.bits == 4 || row.bits == 6 || row.bits == 8 || row.bits == 16 || row.bits == 32 || row.bits == 64);
  }
  EXPECT_EQ(info(Dtype::unknown).bits, 0);
}

TEST(Dtype, TorchNamesAndExactCase) {
  EXPECT_EQ(parse_dtype("bfloat16"), Dtype::bf16);
  EXPECT_EQ(parse_dtype("torch.bfloat16"), Dtype::bf16);
  EXPECT_EQ(parse_dtype("float8_e4m3fn"), Dtype::f8_e4m3);
  EXPECT_EQ(parse_dtype("half"), Dtype::f16);
  for (const char* name : {"bf16", "Bf16", "BFLOAT16", "F7", "", "torch.", "torch.BF16", "unknown", "BF16 "}) {
    EXPECT_FALSE(parse_dtype(name).has_value()) << name;
  }
}

using Shape = std::vector<std::int64_t>;

TEST(Checked, SumsAndProducts) {
  EXPECT_EQ(checked_add<std::uint64_t>(~0ull, 0), ~0ull);
  EXPECT_FALSE(checked_add<std::uint64_t>(~0ull, 1));
  EXPECT_FALSE(checked_add<std::int64_t>(INT64_MAX, 1));
  EXPECT_FALSE(checked_mul<std::int64_t>(INT64_MIN, -1));
  EXPECT_EQ(checked_mul<std::uint64_t>(1ull << 32, (1ull << 32) - 1), 0xFFFFFFFF00000000ull);
  EXPECT_FALSE(checked_mul<std::uint64_t>(1ull << 32, 1ull << 32));
}

TEST(Checked, TensorSizes) {
  EXPECT_EQ(tensor_nbytes(Dtype::f32, Shape{}), 4u);
  EXPECT_EQ(tensor_nbytes(Dtype::bf16, Shape{3, 5}), 30u);
  EXPECT_EQ(tensor_nbytes(Dtype::bf16, Shape{3, 0}), 0u);
  EXPECT_EQ(tensor_nbytes(Dtype::f4, Shape{2, 3}), 3u);
  EXPECT_EQ(tensor_nbytes(Dtype::f6_e2m3, Shape{4}), 3u);
  EXPECT_FALSE(tensor_nbytes(Dtype::unknown, Shape{1}));
  EXPECT_EQ(tensor_size(Shape{1, 3}, 4).fault, SizeFault::fraction);
  EXPECT_EQ(tensor_size(Shape{2, -2}, 8).fault, SizeFault::elements);  // [2, 2^64 - 2]
  EXPECT_EQ(tensor_size(Shape{2, INT64_MAX}, 32).fault, SizeFault::bits);
  EXPECT_EQ(tensor_size(Shape{1ll << 61}, 64).fault, SizeFault::bits);  // 2^64 bytes in bits
}

TEST(Checked, EveryPrefixProductMustFit) {
  EXPECT_EQ(tensor_size(Shape{INT64_MIN, 4, 0}, 8).fault, SizeFault::elements);
  EXPECT_EQ(tensor_size(Shape{0, INT64_MIN, 4}, 8).fault, SizeFault::none);
  EXPECT_EQ(tensor_size(Shape{INT64_MIN, 0}, 8).fault, SizeFault::none);
}

}  // namespace
}  // namespace peft
