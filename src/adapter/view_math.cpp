#include "adapter/view_math.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/float_formats.h"
#include "peft/adapter.h"
#include "peft/error.h"

namespace peft::adapter {
namespace {

constexpr std::int64_t kScanBlock = 4096;  // elements that are scanned before the exact counting of a block

// The flattened index of the outermost element, or nothing when it leaves [0, count).
bool inside(const View& view, std::int64_t count) {
  if (view.rows < 0 || view.cols < 0 || view.offset < 0) return false;
  if (view.rows == 0 || view.cols == 0) return true;
  std::int64_t low = view.offset, high = view.offset, span = 0;
  for (const auto& [n, stride] : {std::pair{view.rows, view.row_stride}, std::pair{view.cols, view.col_stride}}) {
    if (__builtin_mul_overflow(n - 1, stride, &span)) return false;
    if (__builtin_add_overflow(span < 0 ? low : high, span, span < 0 ? &low : &high)) return false;
  }
  return low >= 0 && high < count;
}

std::int64_t element_width(const TensorFile& file, const TensorInfo& tensor) {
  const int bits = info(tensor.dtype).bits;
  if (bits >= 8 && bits % 8 == 0) return bits / 8;
  at(file.path(), std::string(tensor.name))
      .fail(ErrorCode::ST_DTYPE, {.problem = "the dtype cannot be compared element by element",
                                  .expected = "whole bytes for each element",
                                  .got = std::string(tensor.dtype_name)});
}

template <class Bits>
bool equal_elements(const Matrix& a, const Matrix& b) {
  for (std::int64_t i = 0; i < a.rows; ++i) {
    const std::byte* pa = a.data + i * a.row_stride * a.width;
    const std::byte* pb = b.data + i * b.row_stride * b.width;
    const std::int64_t step_a = a.col_stride * a.width, step_b = b.col_stride * b.width;
    Bits differing = 0;
    for (std::int64_t j = 0; j < a.cols; ++j, pa += step_a, pb += step_b) {
      Bits x, y;
      std::memcpy(&x, pa, sizeof x);
      std::memcpy(&y, pb, sizeof y);
      differing = static_cast<Bits>(differing | (x ^ y));
    }
    if (differing != 0) return false;
  }
  return true;
}

// Rows whose elements lie side by side are compared as memory.
bool equal_rows(const Matrix& a, const Matrix& b) {
  if (a.row_stride == a.cols && b.row_stride == b.cols) {
    return std::memcmp(a.data, b.data, static_cast<std::size_t>(a.rows * a.cols * a.width)) == 0;
  }
  for (std::int64_t i = 0; i < a.rows; ++i) {
    if (std::memcmp(a.data + i * a.row_stride * a.width, b.data + i * b.row_stride * b.width,
                    static_cast<std::size_t>(a.cols * a.width)) != 0) {
      return false;
    }
  }
  return true;
}

// The faster order to walk a matrix in: the smaller stride inside, and no inner loop of one step.
bool rows_inside(const Matrix& m) {
  return m.rows > 1 && (m.cols == 1 || std::abs(m.row_stride) < std::abs(m.col_stride));
}

template <class Element>
void read_column(const std::byte* p, std::int64_t step, std::span<double> out) {
  if (step == Element::kWidth) {  // known to the compiler, this loop becomes vector code
    for (std::size_t r = 0; r < out.size(); ++r) out[r] = Element::value(p + r * Element::kWidth);
  } else {
    for (std::size_t r = 0; r < out.size(); ++r, p += step) out[r] = Element::value(p);
  }
}

bool is_zero(const Matrix& m) {
  if (rows_inside(m)) return is_zero(m.transposed());
  return with_element_type(m.dtype, [&]<class Element>(Element) {
    for (std::int64_t i = 0; i < m.rows; ++i) {
      const std::byte* p = m.data + i * m.row_stride * m.width;
      for (std::int64_t j = 0; j < m.cols; ++j, p += m.col_stride * m.width) {
        if ((Element::bits(p) & Element::kValueBits) != 0) return false;
      }
    }
    return true;
  });
}

}  // namespace

Matrix bind(const TensorFile& file, const View& view) {
  if (view.tensor >= file.tensors().size()) {
    at(file.path()).fail(ErrorCode::INTERNAL, {.problem = "a view names a tensor that does not exist"});
  }
  const TensorInfo& tensor = file.tensors()[view.tensor];
  const std::int64_t width = element_width(file, tensor);
  const auto bytes = file.bytes(tensor);
  if (!inside(view, static_cast<std::int64_t>(bytes.size()) / width)) {
    at(file.path(), std::string(tensor.name)).fail(ErrorCode::INTERNAL, {.problem = "a view leaves its tensor"});
  }
  return {
      bytes.data() + view.offset * width, tensor.dtype, width, view.rows, view.cols, view.row_stride, view.col_stride};
}

Matrix bind(const TensorFile& file, const TensorInfo& tensor) {
  const std::int64_t width = element_width(file, tensor);
  const auto bytes = file.bytes(tensor);
  const std::int64_t count = static_cast<std::int64_t>(bytes.size()) / width;
  return {bytes.data(), tensor.dtype, width, 1, count, count, 1};
}

bool equal(const Matrix& a, const Matrix& b) {
  if (a.dtype != b.dtype || a.rows != b.rows || a.cols != b.cols) return false;
  if (a.rows == 0 || a.cols == 0) return true;
  if (a.col_stride == 1 && b.col_stride == 1) return equal_rows(a, b);
  if (a.row_stride == 1 && b.row_stride == 1) return equal_rows(a.transposed(), b.transposed());
  const Matrix x = rows_inside(a) ? a.transposed() : a;
  const Matrix y = rows_inside(a) ? b.transposed() : b;
  switch (a.width) {
    case 1:
      return equal_elements<std::uint8_t>(x, y);
    case 2:
      return equal_elements<std::uint16_t>(x, y);
    case 4:
      return equal_elements<std::uint32_t>(x, y);
    default:
      return equal_elements<std::uint64_t>(x, y);
  }
}

std::vector<bool> zero_rows(const Matrix& matrix) {
  std::vector<bool> zero(static_cast<std::size_t>(matrix.rows));
  for (std::int64_t i = 0; i < matrix.rows; ++i) zero[static_cast<std::size_t>(i)] = is_zero(matrix.row_range(i, 1));
  return zero;
}

std::vector<bool> zero_cols(const Matrix& matrix) {
  std::vector<bool> nonzero(static_cast<std::size_t>(matrix.cols));
  mark_nonzero_cols(matrix, nonzero);
  nonzero.flip();
  return nonzero;
}

void mark_nonzero_cols(const Matrix& matrix, std::vector<bool>& nonzero) {
  // Nearly every column has a value in its first rows. The few columns that are left are read to the end.
  const std::int64_t head = std::min<std::int64_t>(matrix.rows, 4);
  for (const auto& part : {matrix.row_range(0, head), matrix.row_range(head, matrix.rows - head)}) {
    std::int64_t c = 0;
    while (c < matrix.cols) {
      if (nonzero[static_cast<std::size_t>(c)]) {
        ++c;
        continue;
      }
      std::int64_t end = c + 1;
      while (end < matrix.cols && !nonzero[static_cast<std::size_t>(end)]) ++end;
      if (!is_zero(part.col_range(c, end - c))) {
        for (; c < end; ++c) nonzero[static_cast<std::size_t>(c)] = !is_zero(part.col_range(c, 1));
      }
      c = end;
    }
  }
}

void read(const Matrix& matrix, std::span<double> out) {
  with_element_type(matrix.dtype, [&]<class Element>(Element) {
    if constexpr (!Element::kFloating) {
      at({}).fail(ErrorCode::ST_DTYPE, {.problem = "a tensor is to be computed on",
                                        .expected = "a floating-point dtype",
                                        .got = std::string(info(matrix.dtype).name)});
    } else {
      const std::int64_t down = matrix.row_stride * matrix.width, right = matrix.col_stride * matrix.width;
      for (std::int64_t c = 0; c < matrix.cols && rows_inside(matrix); ++c) {
        read_column<Element>(matrix.data + c * right, down, out.subspan(c * matrix.rows, matrix.rows));
      }
      for (std::int64_t r = 0; r < matrix.rows && !rows_inside(matrix); ++r) {
        const std::byte* p = matrix.data + r * down;
        for (std::int64_t c = 0; c < matrix.cols; ++c, p += right) out[c * matrix.rows + r] = Element::value(p);
      }
    }
  });
}

void read_columns(const Matrix& matrix, std::span<const std::int64_t> list, std::span<double> out) {
  std::size_t run = 0;  // columns of the list that follow each other are read together
  for (std::size_t j = 1; j <= list.size(); ++j) {
    if (j < list.size() && list[j] == list[j - 1] + 1) continue;
    const std::size_t values = (j - run) * matrix.rows;
    read(matrix.col_range(list[run], static_cast<std::int64_t>(j - run)), out.subspan(run * matrix.rows, values));
    run = j;
  }
}

NonFinite count_nonfinite(std::span<const std::byte> bytes, Dtype dtype) {
  NonFinite found;
  with_element_type(dtype, [&]<class Element>(Element) {
    if constexpr (Element::kFloating) {
      const auto count = static_cast<std::int64_t>(bytes.size()) / Element::kWidth;
      for (std::int64_t begin = 0; begin < count; begin += kScanBlock) {
        const std::int64_t size = std::min(kScanBlock, count - begin);
        const std::byte* p = bytes.data() + begin * Element::kWidth;
        unsigned any = 0;
        for (std::int64_t i = 0; i < size; ++i) any |= Element::finite(p + i * Element::kWidth) ? 0U : 1U;
        if (any == 0) continue;
        for (std::int64_t i = 0; i < size; ++i) {
          if (Element::finite(p + i * Element::kWidth)) continue;
          const double value = Element::value(p + i * Element::kWidth);
          ++(std::isnan(value) ? found.nan : value > 0 ? found.positive : found.negative);
          if (found.first < 0) found.first = begin + i;
        }
      }
    }
  });
  return found;
}

void require_finite(const TensorFile& file, const TensorInfo& tensor) {
  const NonFinite found = count_nonfinite(file.bytes(tensor), tensor.dtype);
  if (!found.any()) return;
  at(file.path(), std::string(tensor.name))
      .fail(ErrorCode::NUM_NONFINITE,
            {.problem = "the tensor holds values that are not finite",
             .got = std::to_string(found.nan) + " NaN, " + std::to_string(found.positive) + " +Inf, " +
                    std::to_string(found.negative) + " -Inf, the first at element " + std::to_string(found.first),
             .hint = "the training diverged or the file is damaged; nothing can be said about such an adapter"});
}

}  // namespace peft::adapter

namespace peft {

std::vector<double> to_matrix(const TensorFile& file, const View& view) {
  std::vector<double> values(static_cast<std::size_t>(view.rows * view.cols));
  // read() goes through columns; those of the transposed matrix are the rows.
  adapter::read(adapter::bind(file, view).transposed(), values);
  return values;
}

std::vector<double> to_delta(const TensorFile& file, const Factor& factor) {
  const auto in = static_cast<std::size_t>(factor.in), rank = static_cast<std::size_t>(factor.rank);
  const std::vector<double> a = to_matrix(file, factor.a), b = to_matrix(file, factor.b);
  std::vector<double> delta(static_cast<std::size_t>(factor.out) * in);
  for (std::size_t i = 0; i < delta.size(); ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < rank; ++k) sum += b[i / in * rank + k] * a[k * in + i % in];
    delta[i] = factor.scale * sum;
  }
  return delta;
}

}  // namespace peft
