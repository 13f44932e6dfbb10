#include "execute/merge_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// SVE and RISC-V vectors have no size at compile time; NEON and scalar code take their place.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/merge_kernel.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

#include "execute/merge_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {

// kRows rows of kVectors vectors stay in registers while k runs.
template <class T, std::size_t kRows, std::size_t kVectors>
HWY_INLINE void multiply_block(const T* left, std::size_t rank, const T* right, T* tile) {
  const Tag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  hn::Vec<Tag<T>> sums[kRows][kVectors];
  HWY_UNROLL(6)
  for (std::size_t i = 0; i < kRows; ++i) {
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < kVectors; ++v) sums[i][v] = hn::Zero(d);
  }
  for (std::size_t k = 0; k < rank; ++k) {
    hn::Vec<Tag<T>> column[kVectors];
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < kVectors; ++v) column[v] = hn::LoadU(d, right + k * kPanel + v * lanes);
    HWY_UNROLL(6)
    for (std::size_t i = 0; i < kRows; ++i) {
      const auto factor = hn::Set(d, left[i * rank + k]);
      HWY_UNROLL(4)
      for (std::size_t v = 0; v < kVectors; ++v) sums[i][v] = fused(d, factor, column[v], sums[i][v]);
    }
  }
  HWY_UNROLL(6)
  for (std::size_t i = 0; i < kRows; ++i) {
    HWY_UNROLL(4)
    for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[i][v], d, tile + i * kPanel + v * lanes);
  }
}

// All columns of a tile for kRows rows.
template <class T, std::size_t kRows>
HWY_INLINE void multiply_rows(const T* left, std::size_t rank, const T* right, T* tile) {
  constexpr std::size_t kVectors = kLanes<T> * sizeof(T) == 64 ? 4 : 2;
  for (std::size_t j = 0; j < kPanel; j += kVectors * kLanes<T>) {
    multiply_block<T, kRows, kVectors>(left, rank, right + j, tile + j);
  }
}

template <class T>
HWY_INLINE void multiply_tile(const T* left, std::size_t rows, std::size_t rank, const T* right, T* tile) {
  std::size_t i = 0;
  for (; i + 4 <= rows; i += 4) multiply_rows<T, 4>(left + i * rank, rank, right, tile + i * kPanel);
  for (; i < rows; ++i) multiply_rows<T, 1>(left + i * rank, rank, right, tile + i * kPanel);
}

void multiply_f32(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile) {
  multiply_tile(left, rows, rank, right, tile);
}
void multiply_f64(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile) {
  multiply_tile(left, rows, rank, right, tile);
}

template <Tail kTail, class Base, class T, class V>
HWY_INLINE V with_tail(V scale, V d, V w) {
  const Tag<T> tag;
  if constexpr (kTail == Tail::fused) return fused(tag, scale, d, w);
  const V delta = hn::Mul(d, scale);
  if constexpr (kTail == Tail::plain) return Base::round(tag, hn::Add(w, delta));
  if constexpr (kTail == Tail::delta_rounded) return Base::round(tag, hn::Add(w, Base::round(tag, delta)));
  return Base::round(tag, hn::Sub(w, Base::round(tag, delta)));
}

template <Tail kTail, class Base, class T>
HWY_INLINE void tail_rows(double scale, const T* d, T* w, std::size_t count) {
  const Tag<T> tag;
  const auto factor = hn::Set(tag, static_cast<T>(scale));
  for (std::size_t i = 0; i < count; i += hn::Lanes(tag)) {
    hn::StoreU(with_tail<kTail, Base, T>(factor, hn::LoadU(tag, d + i), hn::LoadU(tag, w + i)), tag, w + i);
  }
}

template <class Base, class T>
HWY_INLINE void tail_of_base(const TailOptions& o, const T* d, T* w, std::size_t count) {
  switch (o.tail) {
    case Tail::fused: return tail_rows<Tail::fused, Base>(o.scale, d, w, count);
    case Tail::plain: return tail_rows<Tail::plain, Base>(o.scale, d, w, count);
    case Tail::delta_rounded: return tail_rows<Tail::delta_rounded, Base>(o.scale, d, w, count);
    case Tail::taken_out: return tail_rows<Tail::taken_out, Base>(o.scale, d, w, count);
  }
}

void tail_f32(const TailOptions& o, const float* d, float* w, std::size_t count) {
  switch (o.base) {
    case Dtype::bf16: return tail_of_base<Bf16>(o, d, w, count);
    case Dtype::f16: return tail_of_base<F16>(o, d, w, count);
    default: return tail_of_base<F32>(o, d, w, count);
  }
}
void tail_f64(const TailOptions& o, const double* d, double* w, std::size_t count) {
  if (o.base == Dtype::f32) return tail_of_base<F32>(o, d, w, count);
  tail_of_base<F64>(o, d, w, count);
}

// One row of a tile. Returns the largest magnitude of the results, as bits; marks small ones.
template <Tail kTail, class Base, class V, class Bits>
HWY_INLINE Bits finish_row(V scale, const float* d, const std::byte* from, std::byte* to, V smallest, Bits largest,
                           std::uint64_t& suspects) {
  const Tag<float> tag;
  const hn::Rebind<std::uint32_t, Tag<float>> bits;
  auto small = hn::Lt(smallest, hn::Zero(tag));
  constexpr std::size_t kVectors = kPanel / kLanes<float>;
  V results[kVectors];
  HWY_UNROLL(16)
  for (std::size_t v = 0; v < kVectors; ++v) {
    const std::size_t j = v * kLanes<float>;
    const auto w = Base::load(tag, from + j * Base::kSize);
    const auto result = with_tail<kTail, Base, float>(scale, hn::LoadU(tag, d + j), w);
    const auto magnitude = hn::And(hn::BitCast(bits, result), hn::Set(bits, 0x7FFFFFFFu));
    largest = hn::Max(largest, magnitude);
    Base::store(tag, result, to + j * Base::kSize);
    if constexpr (kTail == Tail::fused) {
      small = hn::Or(small, hn::Lt(hn::Abs(result), smallest));
      results[v] = result;
    }
  }
  suspects = 0;
  if (kTail == Tail::fused && !hn::AllFalse(tag, small)) {
    const float limit = hn::GetLane(smallest);
    float values[kPanel];
    for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(results[v], tag, values + v * kLanes<float>);
    for (std::size_t j = 0; j < kPanel; ++j) {
      if (std::fabs(values[j]) < limit) suspects |= std::uint64_t{1} << j;
    }
  }
  return largest;
}

template <Tail kTail, class Base>
HWY_INLINE bool finish_tile(double scale, const float* d, const TileRows& where, const float* smallest,
                            std::uint64_t* suspects) {
  const Tag<float> tag;
  const hn::Rebind<std::uint32_t, Tag<float>> bits;
  const auto factor = hn::Set(tag, static_cast<float>(scale));
  auto largest = hn::Zero(bits);
  for (std::size_t i = 0; i < where.rows; ++i) {
    const std::byte* from = where.base + static_cast<std::int64_t>(i) * where.base_pitch;
    std::byte* to = where.out + static_cast<std::int64_t>(i) * where.out_pitch;
    const auto limit = hn::Set(tag, smallest == nullptr ? -1.0F : smallest[i]);
    std::uint64_t marked = 0;
    if (where.cols == kPanel) {
      for (std::size_t line = 0; line < kPanel * Base::kSize; line += 64)  // of the tile to the right, which is next
        __builtin_prefetch(from + kPanel * Base::kSize + line);
      largest = finish_row<kTail, Base>(factor, d + i * kPanel, from, to, limit, largest, marked);
    } else {
      std::byte in[kPanel * Base::kSize] = {}, out[kPanel * Base::kSize];
      std::memcpy(in, from, where.cols * Base::kSize);
      largest = finish_row<kTail, Base>(factor, d + i * kPanel, in, out, limit, largest, marked);
      std::memcpy(to, out, where.cols * Base::kSize);
      marked &= (std::uint64_t{1} << where.cols) - 1;
    }
    if (suspects != nullptr) suspects[i] = marked;
  }
  return hn::AllTrue(bits, hn::Lt(largest, hn::Set(bits, Base::kInfinite)));
}

template <class Base>
HWY_INLINE bool finish_of_base(const TailOptions& o, const float* d, const TileRows& where, const float* smallest,
                               std::uint64_t* suspects) {
  switch (o.tail) {
    case Tail::fused: return finish_tile<Tail::fused, Base>(o.scale, d, where, smallest, suspects);
    case Tail::plain: return finish_tile<Tail::plain, Base>(o.scale, d, where, smallest, suspects);
    case Tail::delta_rounded: return finish_tile<Tail::delta_rounded, Base>(o.scale, d, where, smallest, suspects);
    case Tail::taken_out: return finish_tile<Tail::taken_out, Base>(o.scale, d, where, smallest, suspects);
  }
  return false;
}

bool finish_any(const TailOptions& o, const float* d, const TileRows& where, const float* smallest,
                std::uint64_t* suspects) {
  switch (o.base) {
    case Dtype::bf16: return finish_of_base<Bf16>(o, d, where, smallest, suspects);
    case Dtype::f16: return finish_of_base<F16>(o, d, where, smallest, suspects);
    default: return finish_of_base<F32>(o, d, where, smallest, suspects);
  }
}

void load_f32(Dtype dtype, const std::byte* from, std::size_t count, float* to) {
  switch (dtype) {
    case Dtype::bf16: return load_row<Bf16>(from, count, to);
    case Dtype::f16: return load_row<F16>(from, count, to);
    default: return load_row<F32>(from, count, to);
  }
}
void load_f64(Dtype dtype, const std::byte* from, std::size_t count, double* to) {
  if (dtype == Dtype::f32) return load_row<F32>(from, count, to);
  load_row<F64>(from, count, to);
}
bool store_f32(Dtype dtype, const float* from, std::size_t count, std::byte* to) {
  switch (dtype) {
    case Dtype::bf16: return store_row<Bf16>(from, count, to);
    case Dtype::f16: return store_row<F16>(from, count, to);
    default: return store_row<F32>(from, count, to);
  }
}
bool store_f64(Dtype dtype, const double* from, std::size_t count, std::byte* to) {
  return dtype == Dtype::f32 ? store_row<F32>(from, count, to) : store_row<F64>(from, count, to);
}
void round_f32(Dtype dtype, float* values, std::size_t count) {
  if (dtype == Dtype::bf16) round_row<Bf16>(values, count);
  if (dtype == Dtype::f16) round_row<F16>(values, count);
}
void round_f64(Dtype dtype, double* values, std::size_t count) {
  if (dtype == Dtype::f32) round_row<F32>(values, count);
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {

HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_f64);
HWY_EXPORT(tail_f32);
HWY_EXPORT(tail_f64);
HWY_EXPORT(finish_any);
HWY_EXPORT(load_f32);
HWY_EXPORT(load_f64);
HWY_EXPORT(store_f32);
HWY_EXPORT(store_f64);
HWY_EXPORT(round_f32);
HWY_EXPORT(round_f64);

void multiply(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile) {
  HWY_DYNAMIC_DISPATCH(multiply_f32)(left, rows, rank, right, tile);
}
void multiply(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile) {
  HWY_DYNAMIC_DISPATCH(multiply_f64)(left, rows, rank, right, tile);
}
void apply_tail(const TailOptions& options, const float* d, float* w, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(tail_f32)(options, d, w, count);
}
void apply_tail(const TailOptions& options, const double* d, double* w, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(tail_f64)(options, d, w, count);
}
bool finish(const TailOptions& options, const float* d, const TileRows& where, const float* smallest,
            std::uint64_t* suspects) {
  return HWY_DYNAMIC_DISPATCH(finish_any)(options, d, where, smallest, suspects);
}
void load(Dtype dtype, const std::byte* from, std::size_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(load_f32)(dtype, from, count, to);
}
void load(Dtype dtype, const std::byte* from, std::size_t count, double* to) {
  if (dtype == Dtype::bf16 || dtype == Dtype::f16) {
    float values[kPanel];
    for (std::size_t i = 0; i < count; i += kPanel) {
      const std::size_t some = std::min(kPanel, count - i);
      load(dtype, from + 2 * i, some, values);
      std::copy_n(values, some, to + i);
    }
    return;
  }
  HWY_DYNAMIC_DISPATCH(load_f64)(dtype, from, count, to);
}
bool store(Dtype dtype, const float* from, std::size_t count, std::byte* to) {
  return HWY_DYNAMIC_DISPATCH(store_f32)(dtype, from, count, to);
}
bool store(Dtype dtype, const double* from, std::size_t count, std::byte* to) {
  return HWY_DYNAMIC_DISPATCH(store_f64)(dtype, from, count, to);
}
void round_to(Dtype dtype, float* values, std::size_t count) { HWY_DYNAMIC_DISPATCH(round_f32)(dtype, values, count); }
void round_to(Dtype dtype, double* values, std::size_t count) { HWY_DYNAMIC_DISPATCH(round_f64)(dtype, values, count); }

}  // namespace peft::execution
#endif
