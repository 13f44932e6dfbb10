// The blocks of GGUF's quantised types: what their bytes are worth, and how numbers are packed into them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "gguf/types/ggml_type.h"

namespace peft::gguf {

// A row of the table: sizes are in info(type). Both functions take one block.
struct BlockFormat {
  GgmlType type;
  void (*unpack)(const std::byte* block, float* values);          // as ggml and gguf-py compute it, bit for bit
  bool (*pack)(const float* values, std::byte* block) = nullptr;  // rounds as ggml's reference; null: only read
};

inline constexpr std::int64_t kMaxBlock = 256;  // elements of the largest block that is read

std::span<const BlockFormat> block_formats();
const BlockFormat* find_block_format(GgmlType type);  // null for a type whose values are not read
bool can_pack(GgmlType type);

// `values` fill whole blocks, and `out` has the bytes of all of them. The type must have a row; to pack, one that can.
// False when the scale of a block does not fit its type.
bool pack_blocks(GgmlType type, std::span<const float> values, std::byte* out);
void unpack_blocks(GgmlType type, std::span<const std::byte> blocks, float* out);

}  // namespace peft::gguf
