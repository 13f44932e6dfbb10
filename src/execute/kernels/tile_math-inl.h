// The vector code of tile_math.cpp and strip.cpp: floating-point formats as vectors of fp32 or fp64, a multiply-add
// that rounds once on every target, and products of packed factors. Compiled once per target. Rounding is done with
// integer arithmetic, so that no mode of the processor changes a bit.
#if defined(PEFT_MERGE_KERNEL_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef PEFT_MERGE_KERNEL_INL
#undef PEFT_MERGE_KERNEL_INL
#else
#define PEFT_MERGE_KERNEL_INL
#endif

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
inline constexpr std::size_t kLanes = HWY_TARGET == HWY_SCALAR ? 1 : HWY_MIN(HWY_MAX_BYTES, 64) / sizeof(T);
template <class T>
using Tag = hn::FixedTag<T, kLanes<T>>;

template <class D, class V>
HWY_INLINE V fused(D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulAdd(a, b, c);
#else
  using T = hn::TFromD<D>;
  T x[kLanes<T>], y[kLanes<T>], z[kLanes<T>];
  hn::StoreU(a, d, x);
  hn::StoreU(b, d, y);
  hn::StoreU(c, d, z);
  for (std::size_t i = 0; i < kLanes<T>; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::LoadU(d, z);
#endif
}

using Tag32 = Tag<float>;
using Bits32 = hn::Rebind<std::uint32_t, Tag32>;
using Half32 = hn::Rebind<std::uint16_t, Tag32>;
using Tag64 = Tag<double>;
using Narrow64 = hn::Rebind<float, Tag64>;
using V32 = hn::Vec<Tag32>;
using U32 = hn::Vec<Bits32>;
using V64 = hn::Vec<Tag64>;

HWY_INLINE U32 load_16(const std::byte* from) {
  return hn::PromoteTo(Bits32(), hn::LoadU(Half32(), reinterpret_cast<const std::uint16_t*>(from)));
}
// The lower 16 bits of each lane.
HWY_INLINE void store_16(U32 bits, std::byte* to) {
  hn::StoreU(hn::TruncateTo(Half32(), bits), Half32(), reinterpret_cast<std::uint16_t*>(to));
}
HWY_INLINE U32 magnitude_of(V32 value) { return hn::And(hn::BitCast(Bits32(), value), hn::Set(Bits32(), 0x7FFFFFFFu)); }
HWY_INLINE bool below(U32 magnitude, std::uint32_t limit) {
  return hn::AllTrue(Bits32(), hn::Lt(magnitude, hn::Set(Bits32(), limit)));
}

// Each format has kSize, the bytes of an element, and kInfinite, the smallest magnitude (as bits of a float) that
// rounds to infinity.
struct Bf16 {
  static constexpr std::size_t kSize = 2;
  static constexpr std::uint32_t kInfinite = 0x7F7F8000;

  static HWY_INLINE V32 load(Tag32 d, const std::byte* from) {
    return hn::BitCast(d, hn::ShiftLeft<16>(load_16(from)));
  }
  static HWY_INLINE U32 rounded(V32 value) {  // not for NaN
    const U32 bits = hn::BitCast(Bits32(), value);
    const U32 odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Bits32(), 1));
    return hn::Add(hn::Add(bits, hn::Set(Bits32(), 0x7FFF)), odd);
  }
  static HWY_INLINE void store(Tag32, V32 value, std::byte* to) { store_16(hn::ShiftRight<16>(rounded(value)), to); }
  static HWY_INLINE void store_two(Tag32 d, V32 first, V32 second, std::byte* to) {
#if HWY_TARGET == HWY_SCALAR
    store(d, first, to);
    store(d, second, to + kLanes<float> * kSize);
#else
    (void)d;
    const hn::Repartition<std::uint16_t, Bits32> halves;  // the odd ones are the upper ones
    const auto both = hn::ConcatOdd(halves, hn::BitCast(halves, rounded(second)), hn::BitCast(halves, rounded(first)));
    hn::StoreU(both, halves, reinterpret_cast<std::uint16_t*>(to));
#endif
  }
  static HWY_INLINE V32 round(Tag32 d, V32 value) {
    const V32 result = hn::BitCast(d, hn::And(rounded(value), hn::Set(Bits32(), 0xFFFF0000u)));
    return hn::IfThenElse(hn::Ne(value, value), value, result);
  }
  static HWY_INLINE bool all_finite(Tag32, V32 value) { return below(magnitude_of(value), kInfinite); }
};

struct F16 {
  static constexpr std::size_t kSize = 2;
  static constexpr std::uint32_t kInfinite = 0x477FF000;

  static HWY_INLINE V32 widen(Tag32 d, U32 half) {
    const U32 magnitude = hn::And(half, hn::Set(Bits32(), 0x7FFF));
    const U32 sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(Bits32(), 0x8000)));
    // Read as a float, the exponent is 112 too small. The product corrects it, for subnormal numbers too.
    const V32 value = hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::Set(d, 0x1p112F));
    const U32 special =
        hn::IfThenElseZero(hn::Gt(magnitude, hn::Set(Bits32(), 0x7BFF)), hn::Set(Bits32(), 0x7F800000u));
    return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(Bits32(), value), special), sign));
  }
  static HWY_INLINE U32 narrow(Tag32 d, V32 value) {
    const U32 magnitude = magnitude_of(value);
    const U32 sign = hn::And(hn::ShiftRight<16>(hn::BitCast(Bits32(), value)), hn::Set(Bits32(), 0x8000));
    const U32 odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(Bits32(), 1));
    const U32 normal = hn::ShiftRight<13>(
        hn::Sub(hn::Add(hn::Add(magnitude, hn::Set(Bits32(), 0xFFF)), odd), hn::Set(Bits32(), 112u << 23)));
    // The last place of 1/2 + x is the last place of subnormal halves.
    const V32 sum = hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5F));
    const U32 subnormal = hn::Sub(hn::BitCast(Bits32(), sum), hn::Set(Bits32(), 0x3F000000));
    U32 result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(Bits32(), 0x38800000)), subnormal, normal);
    result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(Bits32(), kInfinite - 1)), hn::Set(Bits32(), 0x7C00), result);
    result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(Bits32(), 0x7F800000)), hn::Set(Bits32(), 0x7E00), result);
    return hn::Or(result, sign);
  }
  static HWY_INLINE V32 load(Tag32 d, const std::byte* from) { return widen(d, load_16(from)); }
  static HWY_INLINE void store(Tag32 d, V32 value, std::byte* to) { store_16(narrow(d, value), to); }
  static HWY_INLINE void store_two(Tag32 d, V32 first, V32 second, std::byte* to) {
    store(d, first, to);
    store(d, second, to + kLanes<float> * kSize);
  }
  static HWY_INLINE V32 round(Tag32 d, V32 value) { return widen(d, narrow(d, value)); }
  static HWY_INLINE bool all_finite(Tag32, V32 value) { return below(magnitude_of(value), kInfinite); }
};

struct F32 {
  static constexpr std::size_t kSize = 4;
  static constexpr std::uint32_t kInfinite = 0x7F800000;

  static HWY_INLINE V32 load(Tag32 d, const std::byte* from) {
    return hn::LoadU(d, reinterpret_cast<const float*>(from));
  }
  static HWY_INLINE void store(Tag32 d, V32 value, std::byte* to) {
    hn::StoreU(value, d, reinterpret_cast<float*>(to));
  }
  static HWY_INLINE void store_two(Tag32 d, V32 first, V32 second, std::byte* to) {
    store(d, first, to);
    store(d, second, to + kLanes<float> * kSize);
  }
  static HWY_INLINE V32 round(Tag32, V32 value) { return value; }
  static HWY_INLINE bool all_finite(Tag32, V32 value) { return below(magnitude_of(value), kInfinite); }

  static HWY_INLINE V64 load(Tag64 d, const std::byte* from) {
    return hn::PromoteTo(d, hn::LoadU(Narrow64(), reinterpret_cast<const float*>(from)));
  }
  static HWY_INLINE void store(Tag64, V64 value, std::byte* to) {
    hn::StoreU(hn::DemoteTo(Narrow64(), value), Narrow64(), reinterpret_cast<float*>(to));
  }
  static HWY_INLINE V64 round(Tag64 d, V64 value) { return hn::PromoteTo(d, hn::DemoteTo(Narrow64(), value)); }
  static HWY_INLINE bool all_finite(Tag64 d,
                                    V64 value) {  // half a last place above the largest float rounds to infinity
    return hn::AllTrue(d, hn::Lt(hn::Abs(value), hn::Set(d, 0x1.ffffffp127)));
  }
};

struct F64 {
  static constexpr std::size_t kSize = 8;
  static HWY_INLINE V64 load(Tag64 d, const std::byte* from) {
    return hn::LoadU(d, reinterpret_cast<const double*>(from));
  }
  static HWY_INLINE void store(Tag64 d, V64 value, std::byte* to) {
    hn::StoreU(value, d, reinterpret_cast<double*>(to));
  }
  static HWY_INLINE V64 round(Tag64, V64 value) { return value; }
  static HWY_INLINE bool all_finite(Tag64 d, V64 value) {
    return hn::AllTrue(d, hn::Le(hn::Abs(value), hn::Set(d, 0x1.fffffffffffffp1023)));
  }
};

template <class Base, class T>
HWY_INLINE void load_row(const std::byte* from, std::size_t count, T* to) {
  const Tag<T> tag;
  std::size_t i = 0;
  for (; i + hn::Lanes(tag) <= count; i += hn::Lanes(tag))
    hn::StoreU(Base::load(tag, from + i * Base::kSize), tag, to + i);
  if (i == count) return;
  std::byte last[sizeof(hn::Vec<Tag<T>>)] = {};
  std::memcpy(last, from + i * Base::kSize, (count - i) * Base::kSize);
  T values[kLanes<T>];
  hn::StoreU(Base::load(tag, last), tag, values);
  std::memcpy(to + i, values, (count - i) * sizeof(T));
}

template <class Base, class T>
HWY_INLINE bool store_row(const T* from, std::size_t count, std::byte* to) {
  const Tag<T> tag;
  bool finite = true;
  std::size_t i = 0;
  for (; i + hn::Lanes(tag) <= count; i += hn::Lanes(tag)) {
    const auto value = hn::LoadU(tag, from + i);
    finite &= Base::all_finite(tag, value);
    Base::store(tag, value, to + i * Base::kSize);
  }
  if (i == count) return finite;
  T values[kLanes<T>] = {};
  std::memcpy(values, from + i, (count - i) * sizeof(T));
  std::byte bytes[sizeof(hn::Vec<Tag<T>>)];
  const auto value = hn::LoadU(tag, values);
  Base::store(tag, value, bytes);
  std::memcpy(to + i * Base::kSize, bytes, (count - i) * Base::kSize);
  return finite && Base::all_finite(tag, value);
}

template <class Base, class T>
HWY_INLINE void round_row(T* values, std::size_t count) {
  const Tag<T> tag;
  for (std::size_t i = 0; i < count; i += hn::Lanes(tag))
    hn::StoreU(Base::round(tag, hn::LoadU(tag, values + i)), tag, values + i);
}

// ---- products of packed factors, and how they are added

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
  for (; i + 2 <= rows; i += 2) multiply_rows<T, 2>(left + i * rank, rank, right, tile + i * kPanel);
  for (; i < rows; ++i) multiply_rows<T, 1>(left + i * rank, rank, right, tile + i * kPanel);
}

template <AddRule kRule, class Base, class T, class V>
HWY_INLINE V with_rule(V scale, V d, V w) {
  const Tag<T> tag;
  if constexpr (kRule == AddRule::fused) return fused(tag, scale, d, w);
  const V delta = hn::Mul(d, scale);
  if constexpr (kRule == AddRule::plain) return Base::round(tag, hn::Add(w, delta));
  if constexpr (kRule == AddRule::delta_rounded) return Base::round(tag, hn::Add(w, Base::round(tag, delta)));
  return Base::round(tag, hn::Sub(w, Base::round(tag, delta)));
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
