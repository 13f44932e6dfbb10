#include "execute/kernels/strip.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "execute/kernels/bf16_pairs.h"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)  // as in tile_math.cpp

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/kernels/strip.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

#include "execute/kernels/tile_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {

// Smallest and largest magnitude, as bits: they are ordered like the numbers.
struct Range {
  U32 least, most;
};

// Finishes kPanel columns of a row.
template <AddRule kRule, class Base>
HWY_INLINE void finish_row(V32 scale, const float* d, const std::byte* from, std::byte* to, Range& range) {
  const Tag32 tag;
  constexpr std::size_t kVector = kLanes<float>;
  const auto result = [&](std::size_t j) HWY_ATTR {
    const V32 value =
        with_rule<kRule, Base, float>(scale, hn::LoadU(tag, d + j), Base::load(tag, from + j * Base::kSize));
    const U32 magnitude = magnitude_of(value);
    range.least = hn::Min(range.least, magnitude);
    range.most = hn::Max(range.most, magnitude);
    return value;
  };
  HWY_UNROLL(2)
  for (std::size_t j = 0; j < kPanel; j += 2 * kVector) {
    const V32 first = result(j), second = result(j + kVector);
    Base::store_two(tag, first, second, to + j * Base::kSize);
  }
}

std::uint64_t columns_below(float limit, std::size_t cols, Dtype dtype, const float* d, float scale,
                            const std::byte* from) {
  float weights[kPanel];
  load(dtype, from, cols, weights);
  std::uint64_t below = 0;
  for (std::size_t j = 0; j < cols; ++j) {
    if (std::fabs(std::fma(scale, d[j], weights[j])) < limit) below |= std::uint64_t{1} << j;
  }
  return below;
}

template <AddRule kRule, class Base>
HWY_INLINE StripResult strip_of(const AddOptions& o, const Strip& strip) {
  const Tag32 tag;
  const Bits32 bits;
  const auto factor = hn::Set(tag, static_cast<float>(o.scale));
  StripResult result;
  U32 most = hn::Zero(bits);
  HWY_ALIGN float d[kTileSize];
  const auto* left = static_cast<const std::uint32_t*>(strip.left);
  const auto* right = static_cast<const std::uint32_t*>(strip.right);
  for (std::size_t p = 0; p < strip.panels(); ++p, right += strip.width * kPanel) {
    if (strip.paired) {
      multiply_pairs(left, strip.rows, strip.width, right, d);
    } else {
      multiply_tile(static_cast<const float*>(strip.left), strip.rows, strip.width,
                    static_cast<const float*>(strip.right) + p * strip.width * kPanel, d);
    }
    const std::size_t first = std::max(strip.begin, p * kPanel), last = std::min(strip.end, (p + 1) * kPanel);
    const std::size_t cols = last - first, skipped = first - p * kPanel;
    const std::byte* from = strip.base + (first - strip.begin) * Base::kSize;
    std::byte* to = strip.out + (first - strip.begin) * Base::kSize;
    for (std::size_t i = 0; i < strip.rows; ++i, from += strip.base_pitch, to += strip.out_pitch) {
      Range range{hn::Set(bits, 0x7FFFFFFFu), most};
      const float* row = d + i * kPanel;
      const bool guarded = kRule == AddRule::fused && strip.row_limits != nullptr;
      const float limit = guarded ? strip.row_limits[i] * strip.panel_limits[p] : 0;
      std::uint64_t below = 0;
      if (cols == kPanel) {
        fetch_ahead(from, strip.base_pitch, kPanel * Base::kSize);
        finish_row<kRule, Base>(factor, row, from, to, range);
        if (guarded && !hn::AllFalse(bits, hn::Lt(range.least, hn::Set(bits, std::bit_cast<std::uint32_t>(limit)))))
          below = columns_below(limit, cols, o.base, row, static_cast<float>(o.scale), from);
      } else {
        float part[kPanel] = {};
        std::byte in[kPanel * Base::kSize] = {}, out[kPanel * Base::kSize];
        std::memcpy(in, from, cols * Base::kSize);
        std::memcpy(part, row + skipped, cols * sizeof(float));
        finish_row<kRule, Base>(factor, part, in, out, range);
        std::memcpy(to, out, cols * Base::kSize);
        if (guarded) below = columns_below(limit, cols, o.base, part, static_cast<float>(o.scale), in);
      }
      most = range.most;
      if (guarded) strip.cancelled[p * kTileRows + i] = below << skipped;
      result.marked |= below != 0;
    }
  }
  result.finite = hn::AllTrue(bits, hn::Lt(most, hn::Set(bits, Base::kInfinite)));
  return result;
}

template <class Base>
HWY_INLINE StripResult strip_of_base(const AddOptions& o, const Strip& strip) {
  switch (o.rule) {
    case AddRule::fused:
      return strip_of<AddRule::fused, Base>(o, strip);
    case AddRule::plain:
      return strip_of<AddRule::plain, Base>(o, strip);
    case AddRule::delta_rounded:
      return strip_of<AddRule::delta_rounded, Base>(o, strip);
    case AddRule::taken_out:
      return strip_of<AddRule::taken_out, Base>(o, strip);
  }
  return {};
}

StripResult strip_any(const AddOptions& o, const Strip& strip) {
  switch (o.base) {
    case Dtype::bf16:
      return strip_of_base<Bf16>(o, strip);
    case Dtype::f16:
      return strip_of_base<F16>(o, strip);
    default:
      return strip_of_base<F32>(o, strip);
  }
}

// Finishes kPanel columns of a row. Returns whether all results are finite. They are looked at before they are narrowed
// too: on targets without vectors, infinity is narrowed to the largest number.
template <class Out>
HWY_INLINE bool finish_row_in_fp64(V64 scale, const double* d, const std::byte* from, std::byte* to) {
  const Tag64 wide;
  const Tag32 tag;
  HWY_ALIGN float values[kPanel];
  bool finite = true;
  HWY_UNROLL(4)
  for (std::size_t j = 0; j < kPanel; j += kLanes<double>) {
    const V64 value = fused(wide, scale, hn::LoadU(wide, d + j), F32::load(wide, from + j * F32::kSize));
    finite &= F32::all_finite(wide, value);
    F32::store(wide, value, reinterpret_cast<std::byte*>(values + j));
  }
  HWY_UNROLL(2)
  for (std::size_t j = 0; j < kPanel; j += kLanes<float>) {
    const V32 value = hn::LoadU(tag, values + j);
    finite &= Out::all_finite(tag, value);
    Out::store(tag, value, to + j * Out::kSize);
  }
  return finite;
}

template <class Out>
HWY_INLINE StripResult strip_in_fp64(double scale, const Strip& strip) {
  const V64 factor = hn::Set(Tag64(), scale);
  StripResult result;
  HWY_ALIGN double d[kTileSize];
  const auto* right = static_cast<const double*>(strip.right);
  for (std::size_t p = 0; p < strip.panels(); ++p, right += strip.width * kPanel) {
    multiply_tile(static_cast<const double*>(strip.left), strip.rows, strip.width, right, d);
    const std::size_t first = std::max(strip.begin, p * kPanel), last = std::min(strip.end, (p + 1) * kPanel);
    const std::size_t cols = last - first, skipped = first - p * kPanel;
    const std::byte* from = strip.base + (first - strip.begin) * F32::kSize;
    std::byte* to = strip.out + (first - strip.begin) * Out::kSize;
    for (std::size_t i = 0; i < strip.rows; ++i, from += strip.base_pitch, to += strip.out_pitch) {
      if (cols == kPanel) {
        result.finite &= finish_row_in_fp64<Out>(factor, d + i * kPanel, from, to);
        continue;
      }
      double part[kPanel] = {};
      std::byte in[kPanel * F32::kSize] = {}, out[kPanel * Out::kSize];
      std::memcpy(in, from, cols * F32::kSize);
      std::memcpy(part, d + i * kPanel + skipped, cols * sizeof(double));
      result.finite &= finish_row_in_fp64<Out>(factor, part, in, out);
      std::memcpy(to, out, cols * Out::kSize);
    }
  }
  return result;
}

StripResult strip_any_in_fp64(double scale, Dtype out, const Strip& strip) {
  switch (out) {
    case Dtype::bf16:
      return strip_in_fp64<Bf16>(scale, strip);
    case Dtype::f16:
      return strip_in_fp64<F16>(scale, strip);
    default:
      return strip_in_fp64<F32>(scale, strip);
  }
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {

HWY_EXPORT(strip_any);
HWY_EXPORT(strip_any_in_fp64);

StripResult merge_strip_in_fp64(double scale, Dtype out, const Strip& strip) {
  return HWY_DYNAMIC_DISPATCH(strip_any_in_fp64)(scale, out, strip);
}

StripResult merge_strip(const AddOptions& options, const Strip& strip) {
  const bool whole = strip.begin == 0 && strip.end % kPanel == 0;
  if (strip.paired && whole && options.base == Dtype::bf16 && options.rule == AddRule::fused)
    return merge_strip_of_pairs(static_cast<float>(options.scale), strip);
  return HWY_DYNAMIC_DISPATCH(strip_any)(options, strip);
}

}  // namespace peft::execution
#endif
