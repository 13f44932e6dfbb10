#include "execute/kernels/tile_math.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// SVE and RISC-V vectors have no size at compile time; NEON and scalar code take their place.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/kernels/tile_math.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

#include "execute/kernels/tile_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {

void multiply_f32(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile) {
  multiply_tile(left, rows, rank, right, tile);
}
void multiply_f64(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile) {
  multiply_tile(left, rows, rank, right, tile);
}

template <AddRule kRule, class Base, class T>
HWY_INLINE void add_rows(double scale, const T* d, T* w, std::size_t count) {
  const Tag<T> tag;
  const auto factor = hn::Set(tag, static_cast<T>(scale));
  for (std::size_t i = 0; i < count; i += hn::Lanes(tag)) {
    hn::StoreU(with_rule<kRule, Base, T>(factor, hn::LoadU(tag, d + i), hn::LoadU(tag, w + i)), tag, w + i);
  }
}

template <class Base, class T>
HWY_INLINE void add_to_base(const AddOptions& o, const T* d, T* w, std::size_t count) {
  switch (o.rule) {
    case AddRule::fused:
      return add_rows<AddRule::fused, Base>(o.scale, d, w, count);
    case AddRule::plain:
      return add_rows<AddRule::plain, Base>(o.scale, d, w, count);
    case AddRule::delta_rounded:
      return add_rows<AddRule::delta_rounded, Base>(o.scale, d, w, count);
    case AddRule::taken_out:
      return add_rows<AddRule::taken_out, Base>(o.scale, d, w, count);
  }
}

void add_f32(const AddOptions& o, const float* d, float* w, std::size_t count) {
  switch (o.base) {
    case Dtype::bf16:
      return add_to_base<Bf16>(o, d, w, count);
    case Dtype::f16:
      return add_to_base<F16>(o, d, w, count);
    default:
      return add_to_base<F32>(o, d, w, count);
  }
}
void add_f64(const AddOptions& o, const double* d, double* w, std::size_t count) {
  if (o.base == Dtype::f32) return add_to_base<F32>(o, d, w, count);
  add_to_base<F64>(o, d, w, count);
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

bool is_wide() { return HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL; }

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {

HWY_EXPORT(is_wide);
HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_f64);
HWY_EXPORT(add_f32);
HWY_EXPORT(add_f64);
HWY_EXPORT(load_f32);
HWY_EXPORT(load_f64);
HWY_EXPORT(store_f32);
HWY_EXPORT(store_f64);
HWY_EXPORT(round_f32);
HWY_EXPORT(round_f64);

bool has_wide_vectors() { return HWY_DYNAMIC_DISPATCH(is_wide)(); }

void multiply(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile) {
  HWY_DYNAMIC_DISPATCH(multiply_f32)(left, rows, rank, right, tile);
}
void multiply(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile) {
  HWY_DYNAMIC_DISPATCH(multiply_f64)(left, rows, rank, right, tile);
}
void apply_rule(const AddOptions& options, const float* d, float* w, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(add_f32)(options, d, w, count);
}
void apply_rule(const AddOptions& options, const double* d, double* w, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(add_f64)(options, d, w, count);
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
