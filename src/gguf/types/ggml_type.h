// The element types of GGUF files. A quantised type packs a block of elements of a row into some bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "peft/tensor.h"

namespace peft::gguf {

// The numbers are those of ggml.h. Missing numbers are types that llama.cpp removed.
enum class GgmlType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42,
};

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;  // as gguf-py says it: "Q8_0"
  std::int64_t block;     // elements of a block; 1 for types that are not quantised
  std::uint64_t block_bytes;
  Dtype dtype = Dtype::unknown;  // what the values are read as; unknown: only the bytes are moved
};

std::span<const GgmlTypeInfo> ggml_types();
const GgmlTypeInfo& info(GgmlType type);
const GgmlTypeInfo* find_ggml_type(std::uint32_t number);  // null for a number that is no type
std::optional<GgmlType> parse_ggml_type(std::string_view name);
std::optional<GgmlType> ggml_type_of(Dtype dtype);  // the type that holds such elements as they are

// Whether a row (the last dimension; one element when there is none) is a whole number of blocks.
bool fills_blocks(GgmlType type, std::span<const std::int64_t> shape);
// The bytes of a tensor whose rows fill blocks. Nothing when a dimension is negative, or when the product of the
// dimensions or the size does not fit 63 bits. The dimensions are multiplied in the order of the file, the last one
// first, and every product on the way must fit.
std::optional<std::uint64_t> tensor_bytes(GgmlType type, std::span<const std::int64_t> shape);

}  // namespace peft::gguf
