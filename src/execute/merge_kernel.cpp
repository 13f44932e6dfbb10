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
#include "execute/merge_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {

void multiply_f32(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile) {
  multiply_tile(left, rows, rank, right, tile);
}
void multiply_f64(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile) {
  multiply_tile(left, rows, rank, right, tile);
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
    case Tail::fused:
      return tail_rows<Tail::fused, Base>(o.scale, d, w, count);
    case Tail::plain:
      return tail_rows<Tail::plain, Base>(o.scale, d, w, count);
    case Tail::delta_rounded:
      return tail_rows<Tail::delta_rounded, Base>(o.scale, d, w, count);
    case Tail::taken_out:
      return tail_rows<Tail::taken_out, Base>(o.scale, d, w, count);
  }
}

void tail_f32(const TailOptions& o, const float* d, float* w, std::size_t count) {
  switch (o.base) {
    case Dtype::bf16:
      return tail_of_base<Bf16>(o, d, w, count);
    case Dtype::f16:
      return tail_of_base<F16>(o, d, w, count);
    default:
      return tail_of_base<F32>(o, d, w, count);
  }
}
void tail_f64(const TailOptions& o, const double* d, double* w, std::size_t count) {
  if (o.base == Dtype::f32) return tail_of_base<F32>(o, d, w, count);
  tail_of_base<F64>(o, d, w, count);
}

void load_f32(Dtype dtype, const std::byte* from, std::size_t count, float* to) {
  switch (dtype) {
    case Dtype::bf16:
      return load_row<Bf16>(from, count, to);
    case Dtype::f16:
      return load_row<F16>(from, count, to);
    default:
      return load_row<F32>(from, count, to);
  }
}
void load_f64(Dtype dtype, const std::byte* from, std::size_t count, double* to) {
  if (dtype == Dtype::f32) return load_row<F32>(from, count, to);
  load_row<F64>(from, count, to);
}
bool store_f32(Dtype dtype, const float* from, std::size_t count, std::byte* to) {
  switch (dtype) {
    case Dtype::bf16:
      return store_row<Bf16>(from, count, to);
    case Dtype::f16:
      return store_row<F16>(from, count, to);
    default:
      return store_row<F32>(from, count, to);
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
