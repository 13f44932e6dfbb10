#include "execute/finite.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>

#include "peft/error.h"

namespace peft::execution {
namespace {

// An element is not finite when its exponent is all ones: the largest magnitude of a stretch tells.
template <typename Word>
Word largest_magnitude(std::span<const std::byte> bytes, Word mask) {
  Word largest = 0;
  const std::size_t count = bytes.size() / sizeof(Word);
  for (std::size_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes.data() + i * sizeof(Word), sizeof(Word));
    largest = std::max(largest, static_cast<Word>(word & mask));
  }
  return largest;
}

struct Format {
  std::size_t size = 0;        // of an element; 0: no NaN in this dtype
  std::uint64_t sign = 0, exponent = 0;
};
Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16: return {2, 0x8000, 0x7f80};
    case Dtype::f16: return {2, 0x8000, 0x7c00};
    case Dtype::f32: return {4, 0x80000000, 0x7f800000};
    case Dtype::f64: return {8, 0x8000000000000000, 0x7ff0000000000000};
    default: return {};
  }
}

}  // namespace

bool all_finite(std::span<const std::byte> bytes, Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16: return largest_magnitude<std::int16_t>(bytes, 0x7fff) < 0x7f80;
    case Dtype::f16: return largest_magnitude<std::int16_t>(bytes, 0x7fff) < 0x7c00;
    case Dtype::f32: return largest_magnitude<std::int32_t>(bytes, 0x7fffffff) < 0x7f800000;
    case Dtype::f64: return largest_magnitude<std::int64_t>(bytes, 0x7fffffffffffffff) < 0x7ff0000000000000;
    default: return true;
  }
}

void blame_nonfinite(const Plan& plan, const PlannedTensor& tensor) {
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
  for (const Block& block : tensor.blocks) {
    if (!seen.insert({block.source.source, block.source.tensor}).second) continue;
    const TensorFile& file = *plan.sources[block.source.source];
    const TensorInfo& source = file.tensors()[block.source.tensor];
    if (block.scales) {
      throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                             .tensor = std::string(source.name),
                                             .problem = fmt::format("a dequantised value is no number that {} can hold", info(tensor.dtype).name),
                                             .expected = "finite products of codes and scales",
                                             .hint = "is the base model damaged?"});
    }
    const auto bytes = file.bytes(source);
    if (all_finite(bytes, source.dtype)) continue;
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
    throw Error(ErrorCode::NUM_NONFINITE, {.file = file.path(),
                                           .tensor = std::string(source.name),
                                           .problem = "the tensor holds values that are no numbers",
                                           .expected = "finite values",
                                           .got = fmt::format("{} NaN, {} +Inf, {} -Inf, the first at element {}", nan, positive, negative, first),
                                           .hint = "the training of this adapter probably diverged"});
  }
  throw Error(ErrorCode::NUM_NONFINITE, {.tensor = tensor.name, .problem = "a value became infinite"});
}

}  // namespace peft::execution
