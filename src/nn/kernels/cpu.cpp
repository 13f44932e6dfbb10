#include "nn/kernels/cpu.h"

#include <cmath>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/kernels/cpu.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace peft::nn::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

struct F32 {
  using Element = float;
  static HWY_INLINE V load(D d, const float* p) { return hn::LoadU(d, p); }
  static float widen(float value) { return value; }
};

struct BF16 {
  using Element = std::uint16_t;
  static HWY_INLINE V load(D d, const std::uint16_t* p) {
    const hn::Rebind<std::uint16_t, D> half;
    const hn::Repartition<std::uint32_t, D> words;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(half, p))));
  }
  static float widen(std::uint16_t value) {
    const std::uint32_t bits = std::uint32_t{value} << 16;
    float result;
    hwy::CopySameSize(&bits, &result);
    return result;
  }
};

// The hardware prefetcher notices such short rows too late, so that each line is prefetched this many bytes
// ahead.
constexpr std::uintptr_t kAhead = 8192;
HWY_INLINE void ask_ahead(const void* data) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(data) + kAhead));  // NOLINT: never read
}

// kRows dot products side by side: x is loaded once for all of them. Two sums a row hide the latency of the adds.
template <class Type, int kRows>
HWY_INLINE void dot_rows(const typename Type::Element* w, std::size_t stride, std::size_t cols, const float* x,
                         float* y) {
  const D d;
  const std::size_t n = hn::Lanes(d);
  V even[kRows], odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(d);
  std::size_t c = 0;
  for (; c + 2 * n <= cols; c += 2 * n) {
    const V x0 = hn::LoadU(d, x + c), x1 = hn::LoadU(d, x + c + n);
    for (int r = 0; r < kRows; ++r) {
      const auto* row = w + static_cast<std::size_t>(r) * stride + c;
      ask_ahead(row), ask_ahead(row + n);
      even[r] = hn::MulAdd(Type::load(d, row), x0, even[r]);
      odd[r] = hn::MulAdd(Type::load(d, row + n), x1, odd[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const auto* row = w + static_cast<std::size_t>(r) * stride;
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[r], odd[r])));
    for (std::size_t i = c; i < cols; ++i) sum += Type::widen(row[i]) * x[i];
    y[r] = sum;
  }
}

template <class Type>
void matvec_of(const typename Type::Element* w, std::int64_t stride, std::int64_t rows, std::int64_t cols,
               const float* x, float* y) {
  const auto step = static_cast<std::size_t>(stride), width = static_cast<std::size_t>(cols);
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) dot_rows<Type, 4>(w + r * stride, step, width, x, y + r);
  for (; r < rows; ++r) dot_rows<Type, 1>(w + r * stride, step, width, x, y + r);
}

void matvec_f32(const float* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x, float* y) {
  matvec_of<F32>(w, stride, rows, cols, x, y);
}

void matvec_b16(const std::uint16_t* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x,
                float* y) {
  matvec_of<BF16>(w, stride, rows, cols, x, y);
}

void norm_row(const float* x, const float* w, float offset, double eps, std::size_t cols, float* out) {
  const D d;
  const std::size_t n = hn::Lanes(d);
  V sums = hn::Zero(d);
  std::size_t c = 0;
  for (; c + n <= cols; c += n) {
    const V value = hn::LoadU(d, x + c);
    sums = hn::MulAdd(value, value, sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; c < cols; ++c) sum += x[c] * x[c];
  const float scale = 1.0F / std::sqrt(sum / static_cast<float>(cols) + static_cast<float>(eps));
  const V scales = hn::Set(d, scale), offsets = hn::Set(d, offset);
  for (c = 0; c + n <= cols; c += n) {
    const V weight = hn::Add(hn::LoadU(d, w + c), offsets);
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + c), scales), weight), d, out + c);
  }
  for (; c < cols; ++c) out[c] = x[c] * scale * (w[c] + offset);
}

void norm_rows(const float* x, std::int64_t stride, const float* w, float offset, double eps, std::int64_t rows,
               std::int64_t cols, float* out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    norm_row(x + r * stride, w, offset, eps, static_cast<std::size_t>(cols), out + r * cols);
  }
}

void rotate_head(const float* x, const float* cos, const float* sin, std::int64_t half, float* out) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    out[i] = a * cos[i] - b * sin[i];
    out[half + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace
}  // namespace peft::nn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::nn::kernels {
HWY_EXPORT(matvec_f32);
HWY_EXPORT(matvec_b16);
HWY_EXPORT(norm_rows);
HWY_EXPORT(rotate_head);

void matvec(const float* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x, float* y) {
  HWY_DYNAMIC_DISPATCH(matvec_f32)(w, stride, rows, cols, x, y);
}

void matvec_bf16(const std::uint16_t* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x,
                 float* y) {
  HWY_DYNAMIC_DISPATCH(matvec_b16)(w, stride, rows, cols, x, y);
}

void rms_norm(const float* x, std::int64_t stride, const float* w, float offset, double eps, std::int64_t rows,
              std::int64_t cols, float* out) {
  HWY_DYNAMIC_DISPATCH(norm_rows)(x, stride, w, offset, eps, rows, cols, out);
}

void rotate(const float* x, const float* cos, const float* sin, std::int64_t half, float* out) {
  HWY_DYNAMIC_DISPATCH(rotate_head)(x, cos, sin, half, out);
}

}  // namespace peft::nn::kernels
#endif  // HWY_ONCE
