// The JSON header of a safetensors file: parses it and checks every rule of docs/format.md.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/safetensors.h"
#include "safetensors/reading/input_file.h"

namespace peft::safetensors {

inline constexpr std::uint64_t kLengthBytes = 8;          // before the header
inline constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes; the Rust library's limit
inline constexpr std::size_t kMaxRank = 16;
inline constexpr std::size_t kMaxName = 4096;  // bytes of a tensor name, of a metadata key
inline constexpr std::size_t kMaxMetadataValue = std::size_t{16} << 20;

// The names of the tensors of one file: a compact open-addressing table, built once.
class NameIndex {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  NameIndex() = default;
  // Memory comes from `memory`, which must outlive the index, as must the tensors.
  NameIndex(std::span<const TensorInfo> tensors, std::pmr::memory_resource& memory);

  std::uint32_t find(std::string_view name) const;  // kNone when absent
  // The first two tensors found with the same name: {kNone, kNone} when all names differ.
  std::pair<std::uint32_t, std::uint32_t> duplicate() const { return duplicate_; }

 private:
  struct Slot {
    std::uint32_t tag;     // half of the hash, so that most comparisons end here
    std::uint32_t number;  // of the tensor, plus one; 0 = free
  };
  void insert(std::uint32_t number, std::uint64_t code);

  std::span<const TensorInfo> tensors_;
  std::span<Slot> slots_;
  std::pair<std::uint32_t, std::uint32_t> duplicate_{kNone, kNone};
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

// json_padding() readable bytes must follow `json`, and `json` must not change while this runs.
Header parse_header(std::string_view json, const FileFacts& file, const OpenOptions& options);

// What the header of a file with these tensors would say. Byte ranges count from `origin`, the lowest address of a
// tensor; tensors may share bytes, and bytes between them are nobody's.
Header describe_memory(std::span<const TensorInMemory> tensors, const std::byte* origin, const FileFacts& file,
                       const OpenOptions& options);

}  // namespace peft::safetensors

namespace peft {

// Owns what tensors_ points to.
struct TensorFile::Index {
  safetensors::Header header;
};

}  // namespace peft
