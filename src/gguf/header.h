// The header of a GGUF file: parses it and checks every rule of docs/gguf.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "gguf/cursor.h"
#include "gguf/value.h"
#include "safetensors/reading/header.h"

namespace peft::gguf {

inline constexpr std::string_view kMagic = "GGUF";
inline constexpr std::uint32_t kVersion = 3;  // what is written; 2 is read, too
inline constexpr std::string_view kAlignmentKey = "general.alignment";
inline constexpr std::uint32_t kDefaultAlignment = 32, kMinAlignment = 8, kMaxAlignment = 65536;
inline constexpr std::size_t kMaxTensorName = 63;  // bytes; llama.cpp keeps names in 64 bytes with a zero at the end
inline constexpr std::uint32_t kMaxDimensions = 4;
inline constexpr std::uint64_t kMaxKeys = 100'000;
inline constexpr std::size_t kMaxKey = 65535;                   // bytes
inline constexpr std::size_t kMaxText = std::size_t{16} << 20;  // bytes of one text
inline constexpr int kMaxDepth = 8;                             // of arrays in arrays

struct Header {
  // Tensors by data offset, then name. Shapes are in the order of all other layouts, the slowest dimension first: the
  // reverse of the file's. There are no texts in `list.metadata`.
  safetensors::Header list;
  KeyValues values;
  std::uint32_t version = kVersion;
  std::uint32_t alignment = kDefaultAlignment;
  std::uint64_t data_offset = 0;
};

Header parse_header(const safetensors::FileFacts& file, const Cursor::Read& read, const OpenOptions& options);

// `offset` rounded up. Nothing when that does not fit 64 bits.
std::optional<std::uint64_t> align_up(std::uint64_t offset, std::uint32_t alignment);

}  // namespace peft::gguf
