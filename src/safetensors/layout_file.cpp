// The bytes before the data of a new file, as the safetensors library writes them.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <numeric>

#include "base/checked.h"
#include "peft/error.h"
#include "peft/safetensors.h"

namespace peft {
namespace {

void append_escape(std::string& out, unsigned char byte) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (byte) {
    case '"':
      out += "\\\"";
      break;
    case '\\':
      out += "\\\\";
      break;
    case '\b':
      out += "\\b";
      break;
    case '\f':
      out += "\\f";
      break;
    case '\n':
      out += "\\n";
      break;
    case '\r':
      out += "\\r";
      break;
    case '\t':
      out += "\\t";
      break;
    default:
      (out += "\\u00") += {kHex[byte >> 4], kHex[byte & 15]};
  }
}

// JSON strings as serde_json writes them: only quotes, backslashes and control characters are escaped.
void append_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t copied = 0;  // runs without anything special are appended as a whole
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != '"' && byte != '\\') continue;
    out.append(text, copied, i - copied);
    copied = i + 1;
    append_escape(out, byte);
  }
  out.append(text, copied, text.size() - copied);
  out += '"';
}

template <typename Integer>
void append_number(std::string& out, Integer value) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  out.append(digits, end);
}

void append_metadata(std::string& out, const Metadata& metadata) {
  out += "\"__metadata__\":{";
  bool first = true;
  for (const auto& [key, value] : metadata) {
    if (!first) out += ',';
    first = false;
    append_string(out, key);
    out += ':';
    append_string(out, value);
  }
  out += '}';
}

void append_tensor(std::string& out, const NewTensor& tensor, std::uint64_t begin, std::uint64_t end) {
  append_string(out, tensor.name);
  (out += ":{\"dtype\":\"") += info(tensor.dtype).name;
  out += "\",\"shape\":[";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i != 0) out += ',';
    append_number(out, tensor.shape[i]);
  }
  out += "],\"data_offsets\":[";
  append_number(out, begin);
  out += ',';
  append_number(out, end);
  out += "]}";
}

std::uint64_t bytes_of(const NewTensor& tensor) {
  const auto bytes = tensor_nbytes(tensor.dtype, tensor.shape);
  if (bytes) return *bytes;
  throw Error(ErrorCode::ST_OVERFLOW, {.tensor = tensor.name,
                                       .problem = "a tensor of this shape and dtype cannot be written",
                                       .got = std::string(info(tensor.dtype).name)});
}

}  // namespace

FileLayout layout_file(std::span<const NewTensor> tensors, const Metadata& metadata) {
  FileLayout layout;
  layout.order.resize(tensors.size());
  std::iota(layout.order.begin(), layout.order.end(), std::size_t{0});
  std::sort(layout.order.begin(), layout.order.end(), [&](std::size_t a, std::size_t b) {
    return tensors[a].dtype != tensors[b].dtype ? tensors[a].dtype > tensors[b].dtype
                                                : tensors[a].name < tensors[b].name;
  });
  layout.begin.resize(tensors.size());
  std::string& head = layout.head;
  std::size_t guess = 64;
  for (const NewTensor& tensor : tensors) guess += tensor.name.size() + 100;
  head.reserve(guess);
  head.assign(8, '\0');
  head += '{';
  if (!metadata.empty()) append_metadata(head, metadata);
  for (const std::size_t index : layout.order) {
    const NewTensor& tensor = tensors[index];
    if (head.back() != '{') head += ',';
    layout.begin[index] = layout.data_bytes;
    const auto end = checked_add(layout.data_bytes, bytes_of(tensor));
    if (!end)
      throw Error(ErrorCode::ST_OVERFLOW,
                  {.tensor = tensor.name, .problem = "the file would be larger than 2^64 bytes"});
    append_tensor(head, tensor, layout.data_bytes, *end);
    layout.data_bytes = *end;
  }
  head += '}';
  while (head.size() % 8 != 0) head += ' ';
  constexpr std::uint64_t kLargest = 100'000'000;  // of a header, for reading and writing alike
  const std::uint64_t length = head.size() - 8;
  if (length > kLargest) {
    throw Error(ErrorCode::ST_HDRBIG, {.problem = "the header would be too long",
                                       .expected = "at most 100000000 bytes",
                                       .got = std::to_string(length) + " bytes"});
  }
  for (int i = 0; i < 8; ++i) head[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i) & 0xff);
  return layout;
}

}  // namespace peft
