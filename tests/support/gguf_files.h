// Images of GGUF files, good and bad, written byte by byte: they do not use the library's own writer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf_file.h"
#include "support/test_files.h"

namespace peft::gguf {

template <class Number>
std::string raw(Number number) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof number; ++i)
    bytes += static_cast<char>(static_cast<std::uint64_t>(number) >> (8 * i) & 0xFF);
  return bytes;
}
inline std::string raw32(std::uint32_t number) { return raw(number); }
inline std::string raw64(std::uint64_t number) { return raw(number); }
inline std::string raw_text(std::string_view text) { return raw64(text.size()) + std::string(text); }

// A key and its value. `type` is the number of the value's type, `bytes` the value as it stands in the file.
inline std::string raw_key(std::string_view key, std::uint32_t type, const std::string& bytes) {
  return raw_text(key) + raw32(type) + bytes;
}
inline std::string raw_array(std::uint32_t element, std::uint64_t count, const std::string& bytes) {
  return raw32(element) + raw64(count) + bytes;
}

struct RawTensor {
  std::string name;
  std::vector<std::uint64_t> dimensions;  // as in the file: the fastest first
  std::uint32_t type = 0;                 // F32
  std::uint64_t offset = 0;
};
inline std::string raw_tensor(const RawTensor& tensor) {
  std::string bytes = raw_text(tensor.name) + raw32(static_cast<std::uint32_t>(tensor.dimensions.size()));
  for (const std::uint64_t dimension : tensor.dimensions) bytes += raw64(dimension);
  return bytes + raw32(tensor.type) + raw64(tensor.offset);
}

// A whole file: head, padding, and `data_bytes` bytes that count up.
inline std::string gguf_image(const std::vector<std::string>& keys, const std::vector<RawTensor>& tensors,
                              std::size_t data_bytes, std::uint32_t version = 3, std::size_t alignment = 32) {
  std::string bytes = "GGUF" + raw32(version) + raw64(tensors.size()) + raw64(keys.size());
  for (const std::string& key : keys) bytes += key;
  for (const RawTensor& tensor : tensors) bytes += raw_tensor(tensor);
  while (bytes.size() % alignment != 0) bytes += '\0';
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

inline std::shared_ptr<const GgufFile> parse_gguf(std::string_view bytes, const OpenOptions& options = {}) {
  return GgufFile::parse(safetensors::bytes_of(bytes), "test.gguf", options);
}

}  // namespace peft::gguf
