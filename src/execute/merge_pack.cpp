#include "execute/merge_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "execute/element.h"
#include "execute/merge_pairs.h"
#include "execute/op.h"

namespace peft::execution {
namespace {

// A matrix of a file's elements; strides in bytes.
struct Source {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t row_stride = 0, col_stride = 0;
};
Source source_of(const Plan& plan, const View& view) {
  Source source;
  source.data = first_byte(plan, view);
  source.dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  source.row_stride = view.row_stride * element_size(source.dtype);
  source.col_stride = view.col_stride * element_size(source.dtype);
  return source;
}

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

// out[i * out_row + j * out_col] = element (i, j), in the order in which the source lies.
template <class T, class Read>
void gather(const Source& s, std::int64_t rows, std::int64_t cols, T* out, std::int64_t out_row, std::int64_t out_col,
            const Read& read) {
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
void widen(const Source& s, std::int64_t rows, std::int64_t cols, T* out, std::int64_t out_row, std::int64_t out_col) {
  const bool loadable = s.dtype == Dtype::bf16 || s.dtype == Dtype::f16 || s.dtype == Dtype::f32;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (loadable && out_col == 1 && s.col_stride == element_size(s.dtype)) {
      for (std::int64_t i = 0; i < rows; ++i)
        load(s.dtype, s.data + i * s.row_stride, static_cast<std::size_t>(cols), out + i * out_row);
      return;
    }
  }
  switch (s.dtype) {
    case Dtype::bf16: return gather(s, rows, cols, out, out_row, out_col, read_bf16<T>);
    case Dtype::f32: return gather(s, rows, cols, out, out_row, out_col, read_f32<T>);
    default:
      return gather(s, rows, cols, out, out_row, out_col,
                    [&](const std::byte* from) { return static_cast<T>(load_element(s.dtype, from)); });
  }
}

}  // namespace

Sides sides_of(const Update& update, bool swapped) {
  if (swapped) return {update.a.transposed(), update.b.transposed(), update.a.rows};
  return {update.b, update.a, update.a.rows};
}

template <class T>
void pack_left(const Plan& plan, const Sides& sides, std::int64_t first, std::size_t rows, T* out, float* norms) {
  const std::int64_t rank = sides.rank, count = static_cast<std::int64_t>(rows);
  if (sides.left.rows == 0) {
    std::fill_n(out, count * rank, T{1});
  } else {
    Source source = source_of(plan, sides.left);
    source.data += first * source.row_stride;
    widen(source, count, rank, out, rank, 1);
  }
  for (std::size_t i = 0; norms != nullptr && i < rows; ++i) {
    float sum = 0;
    for (std::int64_t k = 0; k < rank; ++k) {
      const auto value = static_cast<float>(out[static_cast<std::int64_t>(i) * rank + k]);
      sum += value * value;
    }
    norms[i] = std::sqrt(sum);
  }
}

template <class T>
float pack_right(const Plan& plan, const Sides& sides, std::int64_t cols, std::int64_t panel, T* out) {
  constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
  const std::int64_t first = panel * kWidth, count = std::min(cols - first, kWidth);
  if (count < kWidth) std::fill_n(out, sides.rank * kWidth, T{0});
  if (sides.right.cols == 0) {
    for (std::int64_t k = 0; k < sides.rank; ++k) std::fill_n(out + k * kWidth, count, T{1});
  } else {
    Source source = source_of(plan, sides.right);
    source.data += first * source.col_stride;
    widen(source, sides.rank, count, out, kWidth, 1);
  }
  float sums[kPanel] = {};
  for (std::int64_t k = 0; k < sides.rank; ++k) {
    for (std::size_t j = 0; j < kPanel; ++j) {
      const auto value = static_cast<float>(out[static_cast<std::size_t>(k) * kPanel + j]);
      sums[j] += value * value;
    }
  }
  return std::sqrt(*std::max_element(sums, sums + kPanel));
}

bool can_pair(const Plan& plan, const Sides& sides) {
  const auto is_bf16 = [&](const View& view) {
    return view.rows > 0 && view.cols > 0 && plan.sources[view.source]->tensors()[view.tensor].dtype == Dtype::bf16;
  };
  return is_bf16(sides.left) && is_bf16(sides.right) && has_pair_products();
}

namespace {

std::uint32_t bits_at(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Whether a word has an element that is neither zero nor large enough. An element minus one, as unsigned: zero becomes large.
std::uint32_t too_small(std::uint32_t word) {
  const std::uint32_t high = word >> 16 & 0x7FFFu, low = word & 0x7FFFu;
  return static_cast<std::uint32_t>(high - 1 < kSmallestSafe - 1) | static_cast<std::uint32_t>(low - 1 < kSmallestSafe - 1);
}

}  // namespace

void pair_left(const Plan& plan, const Sides& sides, std::int64_t first, std::size_t rows, std::uint32_t* out, float* norms,
               bool& safe) {
  const Source source = source_of(plan, sides.left);
  const std::size_t pairs = pairs_of(static_cast<std::size_t>(sides.rank));
  std::uint32_t small = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    const std::byte* from = source.data + (first + static_cast<std::int64_t>(i)) * source.row_stride;
    float sum = 0;
    for (std::size_t p = 0; p < pairs; ++p, from += 2 * source.col_stride) {
      const bool whole = 2 * static_cast<std::int64_t>(p) + 1 < sides.rank;
      const std::uint32_t word = bits_at(from) << 16 | (whole ? bits_at(from + source.col_stride) : 0);
      out[i * pairs + p] = word;
      small |= too_small(word);
      sum += first_of(word) * first_of(word) + second_of(word) * second_of(word);
    }
    norms[i] = std::sqrt(sum);
  }
  safe = small == 0;
}

float pair_right(const Plan& plan, const Sides& sides, std::int64_t cols, std::int64_t panel, std::uint32_t* out, bool& safe) {
  constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
  const Source source = source_of(plan, sides.right);
  const std::int64_t first = panel * kWidth;
  const auto count = static_cast<std::size_t>(std::min(cols - first, kWidth));
  const std::size_t pairs = pairs_of(static_cast<std::size_t>(sides.rank));
  if (count < kPanel) std::fill_n(out, pairs * kPanel, 0u);
  const bool dense = source.col_stride == 2;
  float sums[kPanel] = {};
  std::uint32_t small = 0;
  for (std::size_t p = 0; p < pairs; ++p) {
    const std::byte* from = source.data + first * source.col_stride + 2 * static_cast<std::int64_t>(p) * source.row_stride;
    const bool whole = 2 * static_cast<std::int64_t>(p) + 1 < sides.rank;
    std::uint32_t* words = out + p * kPanel;
    if (dense && whole) {
      for (std::size_t j = 0; j < count; ++j) words[j] = bits_at(from + 2 * j) << 16 | bits_at(from + source.row_stride + 2 * j);
    } else {
      for (std::size_t j = 0; j < count; ++j, from += source.col_stride)
        words[j] = bits_at(from) << 16 | (whole ? bits_at(from + source.row_stride) : 0);
    }
    for (std::size_t j = 0; j < kPanel; ++j) {
      small |= too_small(words[j]);
      sums[j] += first_of(words[j]) * first_of(words[j]) + second_of(words[j]) * second_of(words[j]);
    }
  }
  safe = small == 0;
  return std::sqrt(*std::max_element(sums, sums + kPanel));
}

template void pack_left(const Plan&, const Sides&, std::int64_t, std::size_t, float*, float*);
template void pack_left(const Plan&, const Sides&, std::int64_t, std::size_t, double*, float*);
template float pack_right(const Plan&, const Sides&, std::int64_t, std::int64_t, float*);
template float pack_right(const Plan&, const Sides&, std::int64_t, std::int64_t, double*);

}  // namespace peft::execution
