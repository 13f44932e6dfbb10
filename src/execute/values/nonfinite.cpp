#include "execute/values/nonfinite.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>

#include "execute/values/dequantise.h"
#include "execute/values/element.h"
#include "peft/error.h"

// SVE and RISC-V vectors have no size at compile time; NEON and scalar code take their place.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/values/nonfinite.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// How far ahead bytes are prefetched. The hardware prefetcher stops at the end of a page.
constexpr std::size_t kAhead = 2048;

// An element is not finite if its exponent is all ones, so the largest magnitude decides.
template <class T>
bool all_below(const std::byte* bytes, std::size_t size, T mask, T limit) {
  const hn::ScalableTag<T> d;
  const std::size_t step = hn::Lanes(d) * sizeof(T);
  const auto masks = hn::Set(d, mask);
  auto largest = hn::Zero(d), other = hn::Zero(d);
  const auto magnitudes = [&](std::size_t at)
                              HWY_ATTR { return hn::And(hn::LoadU(d, reinterpret_cast<const T*>(bytes + at)), masks); };
  std::size_t at = 0;
  for (; at + 4 * step <= size; at += 4 * step) {
    for (std::size_t line = 0; line < 4 * step; line += 64) __builtin_prefetch(bytes + at + kAhead + line, 0, 2);
    largest = hn::Max(largest, hn::Max(magnitudes(at), magnitudes(at + step)));
    other = hn::Max(other, hn::Max(magnitudes(at + 2 * step), magnitudes(at + 3 * step)));
  }
  alignas(HWY_MAX_BYTES) T lanes[HWY_MAX_BYTES / sizeof(T)];
  hn::Store(hn::Max(largest, other), d, lanes);
  T most = *std::max_element(lanes, lanes + hn::Lanes(d));
  for (; at + sizeof(T) <= size; at += sizeof(T)) {
    T word;
    std::memcpy(&word, bytes + at, sizeof(T));
    most = std::max(most, static_cast<T>(word & mask));
  }
  return most < limit;
}

bool all_finite_of(const std::byte* bytes, std::size_t size, Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return all_below<std::int16_t>(bytes, size, 0x7fff, 0x7f80);
    case Dtype::f16:
      return all_below<std::int16_t>(bytes, size, 0x7fff, 0x7c00);
    case Dtype::f32:
      return all_below<std::int32_t>(bytes, size, 0x7fffffff, 0x7f800000);
    case Dtype::f64:
      return all_below<std::int64_t>(bytes, size, 0x7fffffffffffffff, 0x7ff0000000000000);
    default:
      return true;
  }
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {
namespace {

struct Format {
  std::size_t size = 0;  // bytes of an element; 0: this dtype has no NaN
  std::uint64_t sign = 0, exponent = 0;
};
Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return {2, 0x8000, 0x7f80};
    case Dtype::f16:
      return {2, 0x8000, 0x7c00};
    case Dtype::f32:
      return {4, 0x80000000, 0x7f800000};
    case Dtype::f64:
      return {8, 0x8000000000000000, 0x7ff0000000000000};
    default:
      return {};
  }
}

}  // namespace

HWY_EXPORT(all_finite_of);

bool all_finite(std::span<const std::byte> bytes, Dtype dtype) {
  return HWY_DYNAMIC_DISPATCH(all_finite_of)(bytes.data(), bytes.size(), dtype);
}

namespace {

// Throws if the tensor that the block is a view of holds values that are not finite.
void check_source(const Plan& plan, const PlannedTensor& tensor, const Block& block) {
  const TensorFile& file = *plan.sources[block.source.source];
  const TensorInfo& source = file.tensors()[block.source.tensor];
  if (block.scales) {
    throw Error(ErrorCode::NUM_NONFINITE,
                {.file = file.path(),
                 .tensor = std::string(source.name),
                 .problem = fmt::format("a dequantised value is no number that {} can hold", info(tensor.dtype).name),
                 .expected = "finite products of codes and scales",
                 .hint = "is the base model damaged?"});
  }
  const auto bytes = file.bytes(source);
  if (all_finite(bytes, source.dtype)) return;
  const Format format = format_of(source.dtype);
  std::uint64_t nan = 0, positive = 0, negative = 0, first = ~std::uint64_t{0};
  for (std::uint64_t i = 0; i < bytes.size() / format.size; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i * format.size, format.size);
    const std::uint64_t magnitude = word & ~format.sign;
    if (magnitude < format.exponent) continue;
    first = std::min(first, i);
    ++(magnitude > format.exponent ? nan : (word & format.sign) != 0 ? negative : positive);
  }
  throw Error(ErrorCode::NUM_NONFINITE,
              {.file = file.path(),
               .tensor = std::string(source.name),
               .problem = "the tensor holds values that are no numbers",
               .expected = "finite values",
               .got = fmt::format("{} NaN, {} +Inf, {} -Inf, the first at element {}", nan, positive, negative, first),
               .hint = "the training of this adapter probably diverged"});
}

}  // namespace

void throw_nonfinite(const Plan& plan, const PlannedTensor& tensor) {
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
  for (const Block& block : tensor.blocks) {
    block.for_each_member([&](const Block& member) {
      if (seen.insert({member.source.source, member.source.tensor}).second) check_source(plan, tensor, member);
    });
  }
  throw Error(ErrorCode::NUM_NONFINITE, {.tensor = tensor.name, .problem = "a value became infinite"});
}

namespace {

void check_values(const Plan& plan, const View& view, const char* hint) {
  for (std::int64_t i = 0; i < view.rows; ++i) {
    for (std::int64_t j = 0; j < view.cols; ++j) {
      const double value = value_at(plan, view, i, j);
      if (std::isfinite(value)) continue;
      const TensorFile& file = *plan.sources[view.source];
      throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                             .tensor = std::string(file.tensors()[view.tensor].name),
                                             .problem = "the tensor holds values that are no numbers",
                                             .expected = "finite values",
                                             .got = std::isnan(value) ? "NaN" : "infinity",
                                             .hint = hint});
    }
  }
}

void check_block(const Plan& plan, const Block& block) {
  for (std::int64_t i = 0; i < block.source.rows; ++i) {
    for (std::int64_t j = 0; j < block.source.cols; ++j) {
      const double value = value_at(plan, block, i, j);
      if (std::isfinite(value)) continue;
      const TensorFile& file = *plan.sources[block.source.source];
      throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                             .tensor = std::string(file.tensors()[block.source.tensor].name),
                                             .problem = "the base weight holds values that are no numbers",
                                             .expected = "finite values",
                                             .got = std::isnan(value) ? "NaN" : "infinity",
                                             .hint = "the base checkpoint is damaged; download it again"});
    }
  }
}

}  // namespace

void throw_nonfinite_merge(const Plan& plan, const PlannedTensor& tensor) {
  constexpr const char* kDiverged = "the training of this adapter probably diverged";
  for (const Update& update : tensor.merge->updates) {
    check_values(plan, update.a, kDiverged);
    if (update.b.rows != 0) check_values(plan, update.b, kDiverged);
    if (update.magnitude) check_values(plan, *update.magnitude, kDiverged);
  }
  for (const Block& block : tensor.blocks) check_block(plan, block);
  throw Error(ErrorCode::NUM_OVERFLOW,
              {.tensor = tensor.name,
               .problem = "a merged value does not fit the output dtype",
               .got = std::string(info(tensor.dtype).name),
               .hint = "choose a dtype with a larger range: --base-dtype bfloat16 or float32"});
}

}  // namespace peft::execution
#endif
