// The JSON header of a safetensors file: parsed, and every rule of docs/format.md checked.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/safetensors.h"
#include "safetensors/name_index.h"

namespace peft::safetensors {

inline constexpr std::uint64_t kLengthBytes = 8;          // before the header
inline constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes; the Rust library's limit
inline constexpr std::size_t kMaxRank = 16;
inline constexpr std::size_t kMaxName = 4096;  // bytes of a tensor name, of a metadata key
inline constexpr std::size_t kMaxMetadataValue = std::size_t{16} << 20;

struct FileFacts {
  std::string path;
  std::uint64_t size = 0;            // of the whole file
  std::string_view part = "header";  // what its JSON is called in messages: "header", "index"
};

// Names, shapes and dtype names live in `memory`.
struct Header {
  std::unique_ptr<std::pmr::monotonic_buffer_resource> memory;
  std::span<const TensorInfo> tensors;
  NameIndex names;
  Metadata metadata;
  std::vector<std::string> notes;
};

// The header's length, from the file's first bytes (fewer than 8 only when the file is that short).
std::uint64_t header_length(std::string_view start, const FileFacts& file);

// `json` must be followed by json_padding() readable bytes, and must not change while this runs.
Header parse_header(std::string_view json, const FileFacts& file, const OpenOptions& options);
std::size_t json_padding();

// A reused buffer of the calling thread, for `length` bytes of JSON and the padding.
std::span<char> json_buffer(std::size_t length);

// Gives back that buffer and what the parser keeps, several times the JSON's size: for who opens one file and works on.
void release_json_memory();

}  // namespace peft::safetensors
