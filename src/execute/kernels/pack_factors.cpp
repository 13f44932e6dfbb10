#include "execute/kernels/pack_factors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_formats.h"
#include "execute/copy/copy_ops.h"
#include "execute/values/element.h"

namespace peft::execution {
namespace {

template <class T>
T read_bf16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return static_cast<T>(bf16_to_float(bits));
}
template <class T>
T read_f32(const std::byte* from) {
  float value;
  std::memcpy(&value, from, sizeof value);
  return static_cast<T>(value);
}

// out[i * out_row + j * out_col] = element (i, j). Reads in the order of the source.
template <class T, class Read>
void gather(const FactorSource& s, std::int64_t rows, std::int64_t cols, T* out, std::int64_t out_row,
            std::int64_t out_col, const Read& read) {
  if (std::abs(s.row_stride) < std::abs(s.col_stride)) {
    for (std::int64_t j = 0; j < cols; ++j) {
      for (std::int64_t i = 0; i < rows; ++i)
        out[i * out_row + j * out_col] = read(s.data + i * s.row_stride + j * s.col_stride);
    }
    return;
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j)
      out[i * out_row + j * out_col] = read(s.data + i * s.row_stride + j * s.col_stride);
  }
}

template <class T>
void widen(const FactorSource& s, std::int64_t rows, std::int64_t cols, T* out, std::int64_t out_row,
           std::int64_t out_col) {
  const bool loadable = s.dtype == Dtype::bf16 || s.dtype == Dtype::f16 || s.dtype == Dtype::f32;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (loadable && out_col == 1 && s.col_stride == element_size(s.dtype)) {
      for (std::int64_t i = 0; i < rows; ++i)
        load(s.dtype, s.data + i * s.row_stride, static_cast<std::size_t>(cols), out + i * out_row);
      return;
    }
  }
  switch (s.dtype) {
    case Dtype::bf16:
      return gather(s, rows, cols, out, out_row, out_col, read_bf16<T>);
    case Dtype::f32:
      return gather(s, rows, cols, out, out_row, out_col, read_f32<T>);
    default:
      return gather(s, rows, cols, out, out_row, out_col,
                    [&](const std::byte* from) { return static_cast<T>(load_element(s.dtype, from)); });
  }
}

constexpr std::size_t kLanes = 16;  // independent sums

float root_of_sum(const float (&squares)[kLanes]) {
  float sum = 0;
  for (const float square : squares) sum += square;
  return std::sqrt(sum);
}

// Squares are added two elements at a time, as pair_left() and pair_right() add them. The last place of a norm decides
// which elements are recomputed, and that must not depend on how a processor packs its factors.
template <class T>
float norm_of_row(const T* row, std::int64_t rank) {
  float squares[kLanes] = {};
  for (std::int64_t k = 0; k < rank; k += 2) {
    const auto first = static_cast<float>(row[k]), second = k + 1 < rank ? static_cast<float>(row[k + 1]) : 0.0F;
    squares[static_cast<std::size_t>(k / 2) % kLanes] += first * first + second * second;
  }
  return root_of_sum(squares);
}

template <class T>
float norm_of_columns(const T* panel, std::int64_t rank) {
  static constexpr T kNone[kPanel] = {};
  float sums[kPanel] = {};
  for (std::int64_t k = 0; k < rank; k += 2) {
    const T *firsts = panel + static_cast<std::size_t>(k) * kPanel, *seconds = k + 1 < rank ? firsts + kPanel : kNone;
    for (std::size_t j = 0; j < kPanel; ++j) {
      const auto first = static_cast<float>(firsts[j]), second = static_cast<float>(seconds[j]);
      sums[j] += first * first + second * second;
    }
  }
  return std::sqrt(*std::max_element(sums, sums + kPanel));
}

}  // namespace

FactorSource source_of(const Plan& plan, const View& view) {
  FactorSource source;
  source.data = first_byte(plan, view);
  source.dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  source.row_stride = view.row_stride * element_size(source.dtype);
  source.col_stride = view.col_stride * element_size(source.dtype);
  return source;
}

Sides sides_of(const Update& update, bool swapped) {
  if (swapped) return {update.a.transposed(), update.b.transposed(), update.a.rows};
  return {update.b, update.a, update.a.rows};
}

template <class T>
void pack_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, T* out,
               float* norms) {
  const auto count = static_cast<std::int64_t>(rows);
  if (source.data == nullptr) {
    std::fill_n(out, count * rank, T{1});
  } else {
    FactorSource some = source;
    some.data += first * source.row_stride;
    widen(some, count, rank, out, rank, 1);
  }
  for (std::size_t i = 0; norms != nullptr && i < rows; ++i)
    norms[i] = norm_of_row(out + static_cast<std::int64_t>(i) * rank, rank);
}

template <class T>
float pack_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel, T* out) {
  const std::int64_t first = panel * kWidth, count = std::min(cols - first, kWidth);
  if (count < kWidth) std::fill_n(out, rank * kWidth, T{0});
  if (source.data == nullptr) {
    for (std::int64_t k = 0; k < rank; ++k) std::fill_n(out + k * kWidth, count, T{1});
  } else {
    FactorSource some = source;
    some.data += first * source.col_stride;
    widen(some, rank, count, out, kWidth, 1);
  }
  return norm_of_columns(out, rank);
}

template void pack_left(const FactorSource&, std::int64_t, std::int64_t, std::size_t, float*, float*);
template void pack_left(const FactorSource&, std::int64_t, std::int64_t, std::size_t, double*, float*);
template float pack_right(const FactorSource&, std::int64_t, std::int64_t, std::int64_t, float*);
template float pack_right(const FactorSource&, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace peft::execution
