// Products of packed factors, and what becomes of them. After merge_kernel-inl.h, compiled once per target.
#if defined(PEFT_MERGE_PRODUCT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef PEFT_MERGE_PRODUCT_INL
#undef PEFT_MERGE_PRODUCT_INL
#else
#define PEFT_MERGE_PRODUCT_INL
#endif

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
  for (; i + 2 <= rows; i += 2) multiply_rows<T, 2>(left + i * rank, rank, right, tile + i * kPanel);
  for (; i < rows; ++i) multiply_rows<T, 1>(left + i * rank, rank, right, tile + i * kPanel);
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

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
