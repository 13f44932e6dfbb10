#include "gguf/types/ggml_type.h"

#include <algorithm>
#include <array>

#include "base/checked.h"

namespace peft::gguf {
namespace {

// Sorted by number. Sizes are those of ggml-common.h; gguf-py has another one for Q8_1, which no file holds.
constexpr std::array<GgmlTypeInfo, 35> kGgmlTypes = {{
    {GgmlType::f32, "F32", 1, 4, Dtype::f32},
    {GgmlType::f16, "F16", 1, 2, Dtype::f16},
    {GgmlType::q4_0, "Q4_0", 32, 18},
    {GgmlType::q4_1, "Q4_1", 32, 20},
    {GgmlType::q5_0, "Q5_0", 32, 22},
    {GgmlType::q5_1, "Q5_1", 32, 24},
    {GgmlType::q8_0, "Q8_0", 32, 34},
    {GgmlType::q8_1, "Q8_1", 32, 36},
    {GgmlType::q2_k, "Q2_K", 256, 84},
    {GgmlType::q3_k, "Q3_K", 256, 110},
    {GgmlType::q4_k, "Q4_K", 256, 144},
    {GgmlType::q5_k, "Q5_K", 256, 176},
    {GgmlType::q6_k, "Q6_K", 256, 210},
    {GgmlType::q8_k, "Q8_K", 256, 292},
    {GgmlType::iq2_xxs, "IQ2_XXS", 256, 66},
    {GgmlType::iq2_xs, "IQ2_XS", 256, 74},
    {GgmlType::iq3_xxs, "IQ3_XXS", 256, 98},
    {GgmlType::iq1_s, "IQ1_S", 256, 50},
    {GgmlType::iq4_nl, "IQ4_NL", 32, 18},
    {GgmlType::iq3_s, "IQ3_S", 256, 110},
    {GgmlType::iq2_s, "IQ2_S", 256, 82},
    {GgmlType::iq4_xs, "IQ4_XS", 256, 136},
    {GgmlType::i8, "I8", 1, 1, Dtype::i8},
    {GgmlType::i16, "I16", 1, 2, Dtype::i16},
    {GgmlType::i32, "I32", 1, 4, Dtype::i32},
    {GgmlType::i64, "I64", 1, 8, Dtype::i64},
    {GgmlType::f64, "F64", 1, 8, Dtype::f64},
    {GgmlType::iq1_m, "IQ1_M", 256, 56},
    {GgmlType::bf16, "BF16", 1, 2, Dtype::bf16},
    {GgmlType::tq1_0, "TQ1_0", 256, 54},
    {GgmlType::tq2_0, "TQ2_0", 256, 66},
    {GgmlType::mxfp4, "MXFP4", 32, 17},
    {GgmlType::nvfp4, "NVFP4", 64, 36},
    {GgmlType::q1_0, "Q1_0", 128, 18},
    {GgmlType::q2_0, "Q2_0", 64, 18},
}};

constexpr std::int64_t row_elements(std::span<const std::int64_t> shape) { return shape.empty() ? 1 : shape.back(); }

}  // namespace

std::span<const GgmlTypeInfo> ggml_types() { return kGgmlTypes; }

const GgmlTypeInfo* find_ggml_type(std::uint32_t number) {
  const auto row = std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(),
                                [&](const GgmlTypeInfo& r) { return static_cast<std::uint32_t>(r.type) == number; });
  return row == kGgmlTypes.end() ? nullptr : &*row;
}

const GgmlTypeInfo& info(GgmlType type) { return *find_ggml_type(static_cast<std::uint32_t>(type)); }

std::optional<GgmlType> parse_ggml_type(std::string_view name) {
  const auto row =
      std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(), [&](const GgmlTypeInfo& r) { return r.name == name; });
  if (row == kGgmlTypes.end()) return std::nullopt;
  return row->type;
}

std::optional<GgmlType> ggml_type_of(Dtype dtype) {
  const auto row = std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(),
                                [&](const GgmlTypeInfo& r) { return r.dtype == dtype && dtype != Dtype::unknown; });
  if (row == kGgmlTypes.end()) return std::nullopt;
  return row->type;
}

bool fills_blocks(GgmlType type, std::span<const std::int64_t> shape) {
  return row_elements(shape) % info(type).block == 0;
}

std::optional<std::uint64_t> tensor_bytes(GgmlType type, std::span<const std::int64_t> shape) {
  std::optional<std::int64_t> elements = 1;
  for (auto dimension = shape.rbegin(); dimension != shape.rend(); ++dimension) {
    if (*dimension < 0) return std::nullopt;
    elements = checked_mul(*elements, *dimension);
    if (!elements) return std::nullopt;
  }
  const GgmlTypeInfo& row = info(type);
  const auto bytes = checked_mul(*elements / row.block, static_cast<std::int64_t>(row.block_bytes));
  if (!bytes) return std::nullopt;
  return static_cast<std::uint64_t>(*bytes);
}

}  // namespace peft::gguf
