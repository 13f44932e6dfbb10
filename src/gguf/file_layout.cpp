#include "gguf/file_layout.h"

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/checked.h"
#include "gguf/header.h"

namespace peft::gguf {
namespace {

void append_text(std::string& out, std::string_view text) {
  append_number<std::uint64_t>(out, text.size());
  out += text;
}

void append_tensor(std::string& out, const NewGgufTensor& tensor, std::uint64_t begin) {
  append_text(out, tensor.name);
  append_number(out, static_cast<std::uint32_t>(tensor.shape.size()));
  for (auto dimension = tensor.shape.rbegin(); dimension != tensor.shape.rend(); ++dimension)
    append_number(out, *dimension);
  append_number(out, static_cast<std::uint32_t>(tensor.type));
  append_number(out, begin);
}

// An alignment that is not allowed is refused when the head is read back.
std::uint32_t alignment_of(const KeyValues& values) {
  const Value* value = find_value(values, kAlignmentKey);
  const std::uint64_t alignment = value == nullptr ? 0 : as_unsigned(*value).value_or(0);
  const bool usable = std::has_single_bit(alignment) && alignment <= kMaxAlignment;
  return usable ? static_cast<std::uint32_t>(alignment) : kDefaultAlignment;
}

// The end of the tensor's data and its padding. A size that does not fit is refused when the head is read back; a sum
// that does not fit is refused here.
std::uint64_t padded_end(const NewGgufTensor& tensor, std::uint64_t begin, std::uint32_t alignment) {
  const auto end = checked_add(begin, tensor_bytes(tensor.type, tensor.shape).value_or(0));
  const auto padded = end ? align_up(*end, alignment) : std::nullopt;
  if (padded && *padded <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}) return *padded;
  at({}, tensor.name).fail(ErrorCode::GG_OFFSET, {.problem = "the data would end beyond 2^63 bytes"});
}

// The reader's rules hold for what is written. Only the head is read; zeros stand for the data.
void require_readable(const FileLayout& layout) {
  const safetensors::FileFacts file{{}, layout.file_bytes()};
  const auto read = [&](std::uint64_t offset, std::span<char> bytes) {
    const std::size_t known = offset < layout.head.size() ? layout.head.copy(bytes.data(), bytes.size(), offset) : 0;
    std::memset(bytes.data() + known, 0, bytes.size() - known);
  };
  static_cast<void>(parse_header(file, read, {.max_tensors = std::numeric_limits<std::uint32_t>::max()}));
}

}  // namespace

FileLayout layout_gguf(std::span<const NewGgufTensor> tensors, const KeyValues& values) {
  const std::uint32_t alignment = alignment_of(values);
  FileLayout layout{.head = std::string(kMagic), .order = {}, .begin = {}};
  append_number(layout.head, kVersion);
  append_number<std::uint64_t>(layout.head, tensors.size());
  append_number<std::uint64_t>(layout.head, values.size());
  for (const auto& [key, value] : values) {
    append_text(layout.head, key);
    append_number(layout.head, static_cast<std::uint32_t>(value.type));
    append_encoded(layout.head, value);
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    layout.order.push_back(i);
    layout.begin.push_back(layout.data_bytes);
    append_tensor(layout.head, tensors[i], layout.data_bytes);
    layout.data_bytes = padded_end(tensors[i], layout.data_bytes, alignment);
  }
  layout.head.resize(*align_up(layout.head.size(), alignment), '\0');
  require_readable(layout);
  return layout;
}

}  // namespace peft::gguf
