#include "safetensors/writing/file_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/checked.h"
#include "base/text.h"
#include "peft/error.h"
#include "safetensors/reading/header.h"

namespace peft {
namespace {

using safetensors::kLengthBytes;
using safetensors::kMaxHeader;
using safetensors::kMaxMetadataValue;
using safetensors::kMaxName;
using safetensors::kMaxRank;

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

void append_tensor(std::string& out, const TensorInfo& tensor, std::uint64_t begin, std::uint64_t end) {
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

// What the reader would refuse is not written.
std::uint64_t checked_bytes(const TensorInfo& tensor) {
  using enum ErrorCode;
  if (tensor.name.empty()) at({}).fail(ST_NAME, {.problem = "a tensor has an empty name"});
  if (tensor.name.size() > kMaxName || tensor.name == "__metadata__") {
    at({}, std::string(tensor.name))
        .fail(ST_NAME, {.problem = "a tensor cannot have this name",
                        .expected = fmt::format("at most {} bytes", kMaxName),
                        .got = fmt::format("{} bytes", tensor.name.size())});
  }
  if (find_invalid_utf8(tensor.name) != std::string::npos)
    at({}, std::string(tensor.name)).fail(ST_UTF8, {.problem = "the name is not valid UTF-8"});
  if (tensor.dtype == Dtype::unknown)
    at({}, std::string(tensor.name)).fail(ST_DTYPE, {.problem = "a tensor of an unknown dtype cannot be written"});
  if (tensor.shape.size() > kMaxRank) {
    at({}, std::string(tensor.name))
        .fail(ST_LIMIT, {.problem = "the tensor has too many dimensions",
                         .expected = fmt::format("at most {}", kMaxRank),
                         .got = fmt::format("{}", tensor.shape.size())});
  }
  for (const std::int64_t dimension : tensor.shape) {
    if (dimension < 0)
      at({}, std::string(tensor.name))
          .fail(ST_SHAPE, {.problem = "a dimension is negative", .got = fmt::format("{}", dimension)});
  }
  const TensorSize size = tensor_size(tensor.shape, info(tensor.dtype).bits);
  if (size.fault == SizeFault::none) return size.bytes;
  at({}, std::string(tensor.name))
      .fail(size.fault == SizeFault::fraction ? ST_BITS : ST_OVERFLOW,
            {.problem = "a tensor of this size cannot be written",
             .got = fmt::format("shape [{}], dtype {}", fmt::join(tensor.shape, ", "), info(tensor.dtype).name)});
}

void check_metadata(const Metadata& metadata) {
  for (const auto& [key, value] : metadata) {
    if (find_invalid_utf8(key) != std::string::npos || find_invalid_utf8(value) != std::string::npos) {
      at({}, std::string(key)).fail(ErrorCode::ST_UTF8, {.problem = "the metadata is not valid UTF-8"});
    }
    if (key.size() > kMaxName || value.size() > kMaxMetadataValue) {
      at({}, std::string(key))
          .fail(ErrorCode::ST_LIMIT, {.problem = "the metadata is too long",
                                      .got = fmt::format("{} and {} bytes", key.size(), value.size())});
    }
  }
}

// By descending dtype, then by name.
std::vector<std::size_t> file_order(std::span<const TensorInfo> tensors) {
  struct Named {
    std::string_view name;
    std::size_t index;
  };
  std::vector<Named> named(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) named[i] = {tensors[i].name, i};
  const auto less = [](const Named& a, const Named& b) { return a.name < b.name; };
  if (!std::is_sorted(named.begin(), named.end(), less)) std::sort(named.begin(), named.end(), less);
  const auto twice = std::adjacent_find(named.begin(), named.end(), [](auto& a, auto& b) { return a.name == b.name; });
  if (twice != named.end())
    at({}, std::string(twice->name)).fail(ErrorCode::ST_DUP, {.problem = "two tensors have this name"});
  std::vector<std::size_t> order(tensors.size());
  std::transform(named.begin(), named.end(), order.begin(), [](const Named& n) { return n.index; });
  const auto larger_dtype = [&](std::size_t a, std::size_t b) { return tensors[a].dtype > tensors[b].dtype; };
  if (!std::is_sorted(order.begin(), order.end(), larger_dtype)) {
    std::stable_sort(order.begin(), order.end(), larger_dtype);
  }
  return order;
}

void finish_head(std::string& head) {
  head += '}';
  while (head.size() % 8 != 0) head += ' ';
  const std::uint64_t length = head.size() - kLengthBytes;
  if (length > kMaxHeader) {
    at({}).fail(ErrorCode::ST_HDRBIG, {.problem = "the header would be too long",
                                       .expected = fmt::format("at most {} bytes", kMaxHeader),
                                       .got = fmt::format("{} bytes", length)});
  }
  for (std::size_t i = 0; i < kLengthBytes; ++i) head[i] = static_cast<char>(length >> (8 * i) & 0xFF);
}

}  // namespace

FileLayout layout_file(std::span<const NewTensor> tensors, const Metadata& metadata) {
  std::vector<TensorInfo> infos;
  infos.reserve(tensors.size());
  for (const NewTensor& tensor : tensors) infos.push_back({tensor.name, tensor.dtype, {}, tensor.shape});
  return file_layout_for(infos, metadata);
}

FileLayout file_layout_for(std::span<const TensorInfo> tensors, const Metadata& metadata) {
  check_metadata(metadata);
  FileLayout layout{.head = std::string(kLengthBytes, '\0'), .order = file_order(tensors), .begin = {}};
  std::size_t guess = 64;
  for (const TensorInfo& tensor : tensors) guess += tensor.name.size() + 100;
  layout.head.reserve(guess);
  layout.head += '{';
  if (!metadata.empty()) append_metadata(layout.head, metadata);
  layout.begin.resize(tensors.size());
  for (const std::size_t index : layout.order) {
    const TensorInfo& tensor = tensors[index];
    const auto end = checked_add(layout.data_bytes, checked_bytes(tensor));
    if (!end)
      at({}, std::string(tensor.name))
          .fail(ErrorCode::ST_OVERFLOW, {.problem = "the file would be larger than 2^64 bytes"});
    if (layout.head.back() != '{') layout.head += ',';
    append_tensor(layout.head, tensor, layout.data_bytes, *end);
    layout.begin[index] = std::exchange(layout.data_bytes, *end);
  }
  finish_head(layout.head);
  return layout;
}

}  // namespace peft
