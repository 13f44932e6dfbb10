#include "verbs/inspect_values.h"

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "layout/keys.h"

namespace peft::verbs {
namespace {

// Sign, exponent and the rest of a floating-point type: an exponent of all ones is infinity or NaN.
template <typename Word>
ValueCounts count(std::span<const std::byte> bytes, Word sign, Word exponent) {
  ValueCounts counts;
  Word any = 0;
  for (std::size_t at = 0; at + sizeof(Word) <= bytes.size(); at += sizeof(Word)) {
    Word word;
    std::memcpy(&word, bytes.data() + at, sizeof(Word));
    const Word magnitude = static_cast<Word>(word & static_cast<Word>(~sign));
    any = static_cast<Word>(any | magnitude);
    if (magnitude < exponent) continue;
    if (magnitude > exponent)
      ++counts.nan;
    else if ((word & sign) != 0)
      ++counts.negative_infinity;
    else
      ++counts.positive_infinity;
  }
  counts.all_zero = any == 0;
  return counts;
}

}  // namespace

ValueCounts count_values(const TensorFile& file, const TensorInfo& tensor) {
  const auto bytes = file.bytes(tensor);
  switch (tensor.dtype) {
    case Dtype::bf16:
      return count<std::uint16_t>(bytes, 0x8000, 0x7f80);
    case Dtype::f16:
      return count<std::uint16_t>(bytes, 0x8000, 0x7c00);
    case Dtype::f32:
      return count<std::uint32_t>(bytes, 0x80000000U, 0x7f800000U);
    case Dtype::f64:
      return count<std::uint64_t>(bytes, 0x8000000000000000ULL, 0x7ff0000000000000ULL);
    default:
      return count<std::uint8_t>(bytes, 0, 0xff);
  }
}

std::vector<std::string> value_anomalies(const Adapter& adapter, const Factors& factors) {
  std::map<std::uint32_t, ValueCounts> counts;
  for (const Factor& factor : factors.factors) {
    for (const auto tensor : {factor.a.tensor, factor.b.tensor}) {
      if (counts.count(tensor) == 0)
        counts[tensor] = count_values(*adapter.weights, adapter.weights->tensors()[tensor]);
    }
  }
  std::vector<std::string> anomalies;
  std::size_t pairs = 0, zero = 0;
  for (const auto& [index, count] : counts) {
    const std::string name(adapter.weights->tensors()[index].name);
    const auto kind = layout::parse_key(name).kind;
    if (kind == layout::KeyKind::lora_b || kind == layout::KeyKind::embedding_a) {
      ++pairs;
      zero += count.all_zero ? 1 : 0;
    }
    if (count.nan + count.positive_infinity + count.negative_infinity != 0) {
      anomalies.push_back(fmt::format("{}: {} NaN, {} +Inf, {} -Inf", name, count.nan, count.positive_infinity,
                                      count.negative_infinity));
    }
  }
  if (zero == pairs && pairs != 0)
    anomalies.push_back("every lora_B is zero: the adapter changes nothing (untrained?)");
  else if (zero != 0)
    anomalies.push_back(fmt::format("{} of {} lora_B tensors are zero: those pairs change nothing", zero, pairs));
  return anomalies;
}

}  // namespace peft::verbs
