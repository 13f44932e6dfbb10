#include "adapter/view_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "peft/adapter.h"
#include "peft/error.h"
#include "support/error_of.h"
#include "support/test_tensors.h"

namespace peft::adapter {
namespace {

using peft::testing::Dense;
using peft::testing::random_dense;
using peft::testing::Tensors;
using peft::testing::whole;

ErrorCode code_of(const std::function<void()>& action) { return peft::testing::error_of(action).code(); }

std::vector<double> values(const Matrix& m) {
  std::vector<double> out(static_cast<std::size_t>(m.rows * m.cols));
  read(m, out);
  return out;
}

TEST(ViewMath, ReadsColumnAfterColumnWhateverTheStrides) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::f32, {3, 4}, {0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23});
  const auto file = tensors.file();
  EXPECT_EQ(values(bind(*file, whole(t, 3, 4))), (std::vector<double>{0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23}));
  EXPECT_EQ(values(bind(*file, whole(t, 3, 4).transposed())),
            (std::vector<double>{0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23}));
  EXPECT_EQ(values(bind(*file, whole(t, 3, 4).col_range(1, 2, 2))), (std::vector<double>{1, 11, 21, 3, 13, 23}));
  EXPECT_EQ(values(bind(*file, View{0, t, 5, 2, 2, 0, 1})), (std::vector<double>{11, 11, 12, 12}));
  const Matrix m = bind(*file, whole(t, 3, 4));
  EXPECT_EQ(values(m.row_range(1, 2).col_range(3, 1)), (std::vector<double>{13, 23}));
}

TEST(ViewMath, ReadsListedColumns) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::f32, {2, 6}, {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15});
  const auto file = tensors.file();
  std::vector<double> out(8);
  read_columns(bind(*file, whole(t, 2, 6)), std::vector<std::int64_t>{1, 2, 5, 4}, out);
  EXPECT_EQ(out, (std::vector<double>{1, 11, 2, 12, 5, 15, 4, 14}));
  read_columns(bind(*file, whole(t, 2, 6)), {}, {});
}

TEST(ViewMath, ReadsEveryHalfExactly) {
  Tensors tensors;
  std::vector<double> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<double>(i);
  const auto t = tensors.add("t", Dtype::u16, {65536}, bits);
  const auto file = tensors.file();
  Matrix m = bind(*file, file->tensors()[t]);
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    m.dtype = dtype;
    const std::vector<double> read_back = values(m);
    for (std::uint32_t i = 0; i < 65536; ++i) {
      const double want = dtype == Dtype::f16 ? Float16::decode(i) : BFloat16::decode(i);
      EXPECT_TRUE(read_back[i] == want || (std::isnan(read_back[i]) && std::isnan(want))) << i;
    }
  }
}

TEST(ViewMath, ReadsEightBitFloats) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::u8, {4}, {0x7e, 0x01, 0xb8, 0x7b});
  const auto file = tensors.file();
  Matrix m = bind(*file, file->tensors()[t]);
  m.dtype = Dtype::f8_e4m3;
  EXPECT_EQ(values(m), (std::vector<double>{448, 0x1p-9, -1, 352}));
  m.dtype = Dtype::f8_e5m2;
  EXPECT_EQ(values(m.col_range(1, 3)), (std::vector<double>{0x1p-16, -0.5, 57344}));
}

TEST(ViewMath, EqualComparesElementsThroughAnyStrides) {
  const Dense m = random_dense(5, 6, 1);
  Dense transposed(6, 5), spread(5, 18);
  for (std::int64_t i = 0; i < 5; ++i) {
    for (std::int64_t j = 0; j < 6; ++j) transposed.at(j, i) = spread.at(i, 3 * j + 1) = m.at(i, j);
  }
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    Tensors tensors;
    const auto plain = tensors.add("m", dtype, m), t = tensors.add("t", dtype, transposed),
               s = tensors.add("s", dtype, spread);
    tensors.flip(tensors.add("flipped", dtype, m), 29 * info(dtype).bits / 8, 0);
    const auto file = tensors.file();
    const Matrix reference = bind(*file, whole(plain, 5, 6));
    const Matrix others[] = {bind(*file, whole(t, 6, 5).transposed()), bind(*file, View{0, s, 1, 5, 6, 18, 3})};
    for (const Matrix& other : others) {
      EXPECT_TRUE(equal(reference, other));
      EXPECT_TRUE(equal(other, reference));
      EXPECT_TRUE(equal(reference.transposed(), other.transposed()));
      EXPECT_FALSE(equal(bind(*file, whole(3, 5, 6)), other));
      EXPECT_FALSE(equal(other.transposed(), bind(*file, whole(3, 5, 6)).transposed()));
    }
    EXPECT_FALSE(equal(reference, bind(*file, whole(3, 5, 6))));
    EXPECT_TRUE(equal(reference.row_range(0, 4), bind(*file, whole(3, 5, 6)).row_range(0, 4)));
    EXPECT_FALSE(equal(reference, bind(*file, whole(plain, 6, 5))));
  }
}

TEST(ViewMath, EqualSeesTheSignOfZeroAndTheDtype) {
  Tensors tensors;
  const auto a = tensors.add("a", Dtype::f32, {2}, {0.0, 1}), b = tensors.add("b", Dtype::f32, {2}, {-0.0, 1});
  const auto c = tensors.add("c", Dtype::i32, {2}, {0, 0x3f800000});
  const auto file = tensors.file();
  EXPECT_FALSE(equal(bind(*file, whole(a, 1, 2)), bind(*file, whole(b, 1, 2))));
  EXPECT_FALSE(equal(bind(*file, whole(a, 1, 2)), bind(*file, whole(c, 1, 2))));
}

TEST(ViewMath, FindsZeroRowsAndColumns) {
  Dense m = random_dense(9, 4, 2);
  for (std::int64_t j = 0; j < 4; ++j) m.at(6, j) = -0.0;
  for (std::int64_t i = 0; i < 9; ++i) m.at(i, 2) = 0;
  m.at(8, 2) = 0x1p-140;  // subnormal, in the last row only
  for (std::int64_t i = 0; i < 9; ++i) m.at(i, 3) = i % 2 == 0 ? 0.0 : -0.0;
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::f32, m);
  const auto file = tensors.file();
  const std::vector<bool> rows{false, false, false, false, false, false, true, false, false},
      cols{false, false, false, true};
  const Matrix matrix = bind(*file, whole(t, 9, 4));
  EXPECT_EQ(zero_rows(matrix), rows);
  EXPECT_EQ(zero_cols(matrix), cols);
  EXPECT_EQ(zero_cols(matrix.transposed()), rows);
  EXPECT_EQ(zero_rows(matrix.transposed()), cols);
  EXPECT_EQ(zero_cols(matrix.row_range(0, 8)), (std::vector<bool>{false, false, true, true}));
}

TEST(ViewMath, CountsNonFiniteValues) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
    std::vector<double> list(10000, 1.5);
    list[4999] = inf, list[5000] = nan, list[9998] = -inf, list[9999] = -inf;
    Tensors tensors;
    tensors.add("good", dtype, {3}, {0, -0.0, 60000});
    tensors.add("bad", dtype, {10000}, list);
    const auto file = tensors.file("some.safetensors");
    const NonFinite found = count_nonfinite(file->bytes(file->tensors()[1]), dtype);
    EXPECT_EQ(found.nan, 1);
    EXPECT_EQ(found.positive, 1);
    EXPECT_EQ(found.negative, 2);
    EXPECT_EQ(found.first, 4999);
    EXPECT_NO_THROW(require_finite(*file, file->tensors()[0]));
    try {
      require_finite(*file, file->tensors()[1]);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE);
      EXPECT_EQ(error.detail().file, "some.safetensors");
      EXPECT_EQ(error.detail().tensor, "bad");
      EXPECT_EQ(error.detail().got, "1 NaN, 1 +Inf, 2 -Inf, the first at element 4999");
    }
  }
}

TEST(ViewMath, RefusesViewsThatLeaveTheirTensor) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::f32, {3, 4}, std::vector<double>(12));
  const auto file = tensors.file();
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max() / 2;
  EXPECT_NO_THROW(bind(*file, View{0, t, 11, 3, 4, -4, -1}));
  for (const View& view :
       {View{0, t, 1, 3, 4, 4, 1}, View{0, t, -1, 1, 1, 1, 1}, View{0, t, 0, 2, 2, -1, 1}, View{0, t, 0, 3, 4, 5, 1},
        View{0, t, 0, huge, huge, huge, huge}, View{0, t, 0, -1, 2, 1, 1}, View{0, 7, 0, 1, 1, 1, 1}}) {
    EXPECT_EQ(code_of([&] { bind(*file, view); }), ErrorCode::INTERNAL);
  }
}

TEST(ViewMath, ComputesOnlyOnFloats) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::i32, {2, 2}, {0, 1, 0, 2});
  const auto file = tensors.file();
  const Matrix m = bind(*file, whole(t, 2, 2));
  EXPECT_EQ(zero_cols(m), (std::vector<bool>{true, false}));
  EXPECT_EQ(code_of([&] { values(m); }), ErrorCode::ST_DTYPE);
}

TEST(ViewMath, GivesMatricesRowAfterRow) {
  Tensors tensors;
  const auto t = tensors.add("t", Dtype::f32, {2, 3}, {0, 1, 2, 10, 11, 12});
  const auto file = tensors.file();
  EXPECT_EQ(to_matrix(*file, whole(t, 2, 3)), (std::vector<double>{0, 1, 2, 10, 11, 12}));
  EXPECT_EQ(to_matrix(*file, whole(t, 2, 3).transposed()), (std::vector<double>{0, 10, 1, 11, 2, 12}));
}

TEST(ViewMath, GivesTheDeltaOfAFactor) {
  Tensors tensors;
  const auto a = tensors.add("a", Dtype::f32, {2, 3}, {1, 2, 3, 4, 5, 6});
  const auto b = tensors.add("b", Dtype::f32, {4, 2}, {1, 0, 0, 1, 1, 1, -1, 2});
  const auto file = tensors.file();
  Factor factor;
  factor.out = 4, factor.in = 3, factor.rank = 2, factor.scale = 0.5;
  factor.a = whole(a, 2, 3), factor.b = whole(b, 4, 2);
  EXPECT_EQ(to_delta(*file, factor), (std::vector<double>{0.5, 1, 1.5, 2, 2.5, 3, 2.5, 3.5, 4.5, 3.5, 4, 4.5}));
}

}  // namespace
}  // namespace peft::adapter
