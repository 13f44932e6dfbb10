#include "gguf/header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "base/text.h"
#include "gguf/types/ggml_type.h"

namespace peft::gguf {
namespace {

using enum ErrorCode;

constexpr std::uint64_t kSmallestKeyValue = 8 + 1 + 4 + 1;    // bytes: a key of one letter, a value of one byte
constexpr std::uint64_t kSmallestTensor = 8 + 1 + 4 + 4 + 8;  // bytes: a name of one letter, no dimension
constexpr const char* kNewerProgram = "a newer program or a fork wrote it";
constexpr const char* kAmbiguous = "readers may see different values; export the file again";

std::string bytes_shown(std::string_view bytes) {
  std::string text;
  for (const char c : bytes.substr(0, 8))
    text += fmt::format("{}{:02x}", text.empty() ? "" : " ", static_cast<unsigned char>(c));
  return text.empty() ? "no bytes" : "bytes " + text;
}

// What a file that does not begin with the magic number is, as far as its first bytes tell.
struct Foreign {
  std::string_view start, what, hint;
};
constexpr Foreign kForeign[] = {
    {safetensors::kLfsPointer, safetensors::kLfsText, safetensors::kLfsHint},
    {"algg", "a GGLA file: LoRA before GGUF", "convert the adapter again from its PEFT folder"},
    {"lmgg", "a GGML file, older than GGUF", "convert the model again with a current llama.cpp"},
    {"fmgg", "a GGMF file, older than GGUF", "convert the model again with a current llama.cpp"},
    {"tjgg", "a GGJT file, older than GGUF", "convert the model again with a current llama.cpp"},
    {"PK\x03\x04", "a zip archive", "unpack it first"},
    {"\x1f\x8b\x08", "a gzip archive", "unpack it first"},
};

class Parser {
 public:
  Parser(const safetensors::FileFacts& file, const Cursor::Read& read, const OpenOptions& options)
      : file_(file), read_(read), options_(options), cursor_(file, read) {}

  Header parse() {
    require_magic();
    read_version();
    const std::uint64_t tensors = read_tensor_count(), keys = read_key_count();
    for (std::uint64_t i = 0; i < keys; ++i) read_key_value();
    require_distinct_keys();
    read_alignment();
    cursor_.enter({});
    require_room(tensors, kSmallestTensor, "tensors");
    read_tensors(tensors);
    find_data(tensors);
    require_tiling();
    if (bad_texts_ != 0) note(fmt::format("{} texts are not valid UTF-8, first in {}", bad_texts_, first_bad_text_));
    return std::move(header_);
  }

 private:
  void note(std::string text) { header_.list.notes.push_back(std::move(text)); }

  // ---- Before the metadata

  void require_magic() {
    std::array<char, 64> first{};
    const std::string_view start(first.data(), std::min<std::uint64_t>(first.size(), file_.size));
    read_(0, std::span(first).first(start.size()));
    if (start.starts_with(kMagic)) {
      cursor_.take(kMagic.size(), "the magic number");
      return;
    }
    for (const Foreign& foreign : kForeign) {
      if (!start.starts_with(foreign.start)) continue;
      cursor_.fail(GG_MAGIC,
                   {.problem = "not a GGUF file", .got = std::string(foreign.what), .hint = std::string(foreign.hint)});
    }
    const bool safetensors = start.size() > 8 && start[8] == '{';
    cursor_.fail(GG_MAGIC, {.problem = "not a GGUF file",
                            .expected = "\"GGUF\" at the beginning",
                            .got = safetensors ? "a safetensors file" : bytes_shown(start)});
  }

  void read_version() {
    const auto version = cursor_.number<std::uint32_t>("the version");
    header_.version = version;
    if (version == 2 || version == kVersion) return;
    const std::string expected = "version 2 or 3, little-endian";
    if (version == 1) {
      cursor_.fail(GG_VERSION, {.problem = "the first version of GGUF is not read",
                                .expected = expected,
                                .got = "version 1",
                                .hint = "convert the file again with a current llama.cpp"});
    }
    const std::uint32_t swapped = __builtin_bswap32(version);
    if (swapped >= 1 && swapped <= 0xFF) {
      cursor_.fail(GG_VERSION, {.problem = "the file is big-endian",
                                .expected = expected,
                                .got = fmt::format("version {}, big-endian", swapped),
                                .hint = "gguf-py's gguf_convert_endian.py makes a little-endian file of it"});
    }
    cursor_.fail(GG_VERSION, {.problem = "this version of GGUF is not known",
                              .expected = expected,
                              .got = fmt::format("version {}", version),
                              .hint = kNewerProgram});
  }

  // Before anything is allocated for `count` things of at least `smallest` bytes.
  void require_room(std::uint64_t count, std::uint64_t smallest, std::string_view what) const {
    if (count <= cursor_.left() / smallest) return;
    cursor_.fail(GG_HEADER, {.problem = fmt::format("the file is said to have more {} than it has room for", what),
                             .expected = fmt::format("at most {}", cursor_.left() / smallest),
                             .got = fmt::format("{}", count),
                             .hint = "the download is incomplete: fetch the file again"});
  }

  std::uint64_t read_tensor_count() {
    const auto count = cursor_.number<std::uint64_t>("the number of tensors");
    require_room(count, kSmallestTensor, "tensors");
    if (count > options_.max_tensors) {
      cursor_.fail(GG_LIMIT, {.problem = "the file has too many tensors",
                              .expected = fmt::format("at most {}", options_.max_tensors),
                              .got = fmt::format("{}", count),
                              .hint = "--max-tensors raises the limit"});
    }
    return count;
  }

  std::uint64_t read_key_count() {
    const auto count = cursor_.number<std::uint64_t>("the number of keys");
    require_room(count, kSmallestKeyValue, "keys");
    if (count > kMaxKeys) {
      cursor_.fail(GG_LIMIT, {.problem = "the file has too many keys",
                              .expected = fmt::format("at most {}", kMaxKeys),
                              .got = fmt::format("{}", count)});
    }
    return count;
  }

  // ---- Metadata

  // Programs in C end a name at the first zero byte: they would see another one.
  void require_name(std::string_view name, std::size_t longest, ErrorCode code, std::string_view what) {
    if (name.empty()) cursor_.fail(code, {.problem = fmt::format("the next {} is empty", what)});
    cursor_.enter(std::string(name));
    if (name.size() > longest) {
      cursor_.fail(code, {.problem = fmt::format("the {} is too long", what),
                          .expected = fmt::format("at most {} bytes", longest),
                          .got = fmt::format("{} bytes", name.size())});
    }
    if (find_invalid_utf8(name) != std::string_view::npos)
      cursor_.fail(code, {.problem = fmt::format("the {} is not valid UTF-8", what)});
    if (name.find('\0') != std::string_view::npos)
      cursor_.fail(code, {.problem = fmt::format("the {} has a zero byte", what)});
  }

  void read_key_value() {
    std::string key(cursor_.take(limited_length("the next key"), "the next key"));
    require_name(key, kMaxKey, GG_KEY, "key");
    Value value{.type = read_type("the type of a value")};
    if (value.type == ValueType::array) {
      read_array(value, 1);
    } else if (value.type == ValueType::text) {
      value.bytes = cursor_.take(limited_length("a text"), "a text");
      if (find_invalid_utf8(value.bytes) != std::string::npos)
        cursor_.fail(GG_VALUE, {.problem = "the text is not valid UTF-8"});
    } else {
      value.bytes = cursor_.take(info(value.type).bytes, "a number");
      require_booleans(value.type, value.bytes);
    }
    header_.values.emplace_back(std::move(key), std::move(value));
  }

  std::uint64_t limited_length(std::string_view what) {
    const std::uint64_t length = cursor_.length(what);
    if (length <= kMaxText) return length;
    cursor_.fail(GG_LIMIT, {.problem = fmt::format("{} is too long", what),
                            .expected = fmt::format("at most {} bytes", kMaxText),
                            .got = fmt::format("{} bytes", length)});
  }

  ValueType read_type(std::string_view what) {
    const auto number = cursor_.number<std::uint32_t>(what);
    if (const ValueTypeInfo* row = find_value_type(number)) return row->type;
    cursor_.fail(GG_VALUE, {.problem = fmt::format("{} is not known", what),
                            .expected = "0 to 12",
                            .got = fmt::format("{}", number),
                            .hint = kNewerProgram});
  }

  void require_booleans(ValueType type, std::string_view bytes) const {
    if (type != ValueType::boolean) return;
    const auto odd = std::find_if(bytes.begin(), bytes.end(), [](char c) { return c != 0 && c != 1; });
    if (odd == bytes.end()) return;
    cursor_.fail(GG_VALUE, {.problem = "a bool is neither true nor false",
                            .expected = "0 or 1",
                            .got = fmt::format("{}", static_cast<unsigned char>(*odd))});
  }

  // Reads an array's type, count and elements; the type and the count of the outermost one into `array`.
  void read_array(Value& array, int depth) {
    array.element = read_type("the type of an array's elements");
    array.count = cursor_.number<std::uint64_t>("the size of an array");
    const std::uint64_t smallest = info(array.element).bytes;
    if (array.count > cursor_.left() / smallest) {
      cursor_.fail(GG_HEADER, {.problem = "an array is larger than the rest of the file",
                               .expected = fmt::format("at most {} elements", cursor_.left() / smallest),
                               .got = fmt::format("{} elements", array.count)});
    }
    if (is_scalar(array.element)) {
      array.bytes = cursor_.take(array.count * smallest, "an array");
      return require_booleans(array.element, array.bytes);
    }
    if (array.element == ValueType::array && depth == kMaxDepth) {
      cursor_.fail(GG_LIMIT, {.problem = "arrays are nested too deeply",
                              .expected = fmt::format("at most {} levels", kMaxDepth)});
    }
    for (std::uint64_t i = 0; i < array.count; ++i) {
      Value element{.type = array.element};
      if (array.element == ValueType::array) read_array(element, depth + 1);
      if (array.element == ValueType::text) element.bytes = list_text();
      append_encoded(array.bytes, element);
    }
  }

  // Vocabularies hold pieces of characters: what is no UTF-8 there is noted, and kept as it is.
  std::string list_text() {
    std::string text(cursor_.take(limited_length("a text"), "a text"));
    if (find_invalid_utf8(text) != std::string::npos && bad_texts_++ == 0)
      first_bad_text_ = in_quotes(cursor_.subject());
    return text;
  }

  void require_distinct_keys() const {
    std::vector<std::string_view> keys;
    keys.reserve(header_.values.size());
    for (const auto& [key, value] : header_.values) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return;
    at(file_.path, std::string(*twice)).fail(GG_KEY, {.problem = "the key appears twice", .hint = kAmbiguous});
  }

  void read_alignment() {
    const Value* value = find_value(header_.values, kAlignmentKey);
    if (value == nullptr) return;
    cursor_.enter(std::string(kAlignmentKey));
    const std::string got = fmt::format("{} of type {}", describe(*value), info(value->type).name);
    if (value->type != ValueType::u32)
      cursor_.fail(GG_VALUE, {.problem = "the alignment has the wrong type", .expected = "u32", .got = got});
    const auto alignment = static_cast<std::uint32_t>(*as_unsigned(*value));
    if (!std::has_single_bit(alignment) || alignment < kMinAlignment || alignment > kMaxAlignment) {
      cursor_.fail(GG_VALUE, {.problem = "the alignment is not allowed",
                              .expected = fmt::format("a power of two from {} to {}", kMinAlignment, kMaxAlignment),
                              .got = fmt::format("{}", alignment)});
    }
    header_.alignment = alignment;
  }

  // ---- Tensors

  void read_tensors(std::uint64_t count) {
    header_.list.memory = std::make_unique<std::pmr::monotonic_buffer_resource>();
    auto& memory = *header_.list.memory;
    auto* tensors = static_cast<TensorInfo*>(
        memory.allocate(std::max<std::uint64_t>(count, 1) * sizeof(TensorInfo), alignof(TensorInfo)));
    for (std::uint64_t i = 0; i < count; ++i) {
      new (tensors + i) TensorInfo(read_tensor(memory));
    }
    cursor_.enter({});
    const std::span list(tensors, count);
    const auto before = [](const TensorInfo& a, const TensorInfo& b) {
      if (a.begin != b.begin) return a.begin < b.begin;
      if (a.end != b.end) return a.end < b.end;  // an empty tensor stands before the one that begins at the same byte
      return a.name < b.name;
    };
    if (!std::is_sorted(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; }))
      note("the tensors are not listed in the order of their data; llama.cpp refuses such a file");
    std::stable_sort(list.begin(), list.end(), before);
    header_.list.tensors = list;
    header_.list.names = safetensors::NameIndex(list, memory);
    const auto [first, second] = header_.list.names.duplicate();
    if (first == safetensors::NameIndex::kNone) return;
    at(file_.path, std::string(list[first].name))
        .fail(GG_NAME, {.problem = "two tensors have this name", .hint = kAmbiguous});
  }

  TensorInfo read_tensor(std::pmr::memory_resource& memory) {
    TensorInfo tensor;
    const std::string_view name = cursor_.take(limited_length("the next tensor's name"), "the next tensor's name");
    require_name(name, kMaxTensorName, GG_NAME, "tensor's name");
    auto* copy = static_cast<char*>(memory.allocate(name.size(), 1));
    std::memcpy(copy, name.data(), name.size());
    tensor.name = {copy, name.size()};
    tensor.shape = read_shape(memory);
    const GgmlTypeInfo& type = read_ggml_type();
    tensor.dtype = type.dtype;
    tensor.dtype_name = type.name;
    tensor.begin = cursor_.number<std::uint64_t>("the tensor's offset");
    const std::uint64_t bytes = checked_bytes(type, tensor.shape);
    if (tensor.begin % header_.alignment != 0) {
      cursor_.fail(GG_OFFSET, {.problem = "the data is not aligned",
                               .expected = fmt::format("a multiple of {}", header_.alignment),
                               .got = fmt::format("offset {}", tensor.begin)});
    }
    const auto end = checked_add(tensor.begin, bytes);
    if (!end || *end > std::numeric_limits<std::int64_t>::max()) {
      cursor_.fail(GG_OFFSET, {.problem = "the data would end beyond 2^63 bytes",
                               .got = fmt::format("{} bytes at offset {}", bytes, tensor.begin)});
    }
    tensor.end = *end;
    return tensor;
  }

  std::span<const std::int64_t> read_shape(std::pmr::memory_resource& memory) {
    const auto rank = cursor_.number<std::uint32_t>("the tensor's number of dimensions");
    if (rank > kMaxDimensions) {
      cursor_.fail(GG_LIMIT, {.problem = "the tensor has too many dimensions",
                              .expected = fmt::format("at most {}", kMaxDimensions),
                              .got = fmt::format("{}", rank)});
    }
    if (rank == 0) return {};
    auto* shape = static_cast<std::int64_t*>(memory.allocate(rank * sizeof(std::int64_t), alignof(std::int64_t)));
    for (std::uint32_t i = 0; i < rank; ++i) {
      const auto dimension = cursor_.number<std::uint64_t>("the tensor's dimensions");
      if (dimension > std::numeric_limits<std::int64_t>::max()) {
        cursor_.fail(GG_SHAPE, {.problem = fmt::format("dimension {} does not fit 63 bits", i),
                                .got = fmt::format("{}", dimension)});
      }
      shape[rank - 1 - i] = static_cast<std::int64_t>(dimension);
    }
    return {shape, rank};
  }

  const GgmlTypeInfo& read_ggml_type() {
    const auto number = cursor_.number<std::uint32_t>("the tensor's type");
    if (const GgmlTypeInfo* row = find_ggml_type(number)) return *row;
    const GgmlTypeInfo& last = ggml_types().back();
    cursor_.fail(
        GG_TYPE,
        {.problem = "the tensor's type is not known",
         .expected = fmt::format("a ggml type up to {}, {}", static_cast<std::uint32_t>(last.type), last.name),
         .got = fmt::format("type {}", number),
         .hint = number > static_cast<std::uint32_t>(last.type) ? kNewerProgram : "llama.cpp has removed this type"});
  }

  std::uint64_t checked_bytes(const GgmlTypeInfo& type, std::span<const std::int64_t> shape) const {
    if (!fills_blocks(type.type, shape)) {
      cursor_.fail(GG_SHAPE, {.problem = fmt::format("a row does not fill whole blocks of {}", type.name),
                              .expected = fmt::format("a multiple of {} elements", type.block),
                              .got = shape_text(shape)});
    }
    if (const auto bytes = tensor_bytes(type.type, shape)) return *bytes;
    cursor_.fail(GG_SHAPE, {.problem = "the tensor's size does not fit 63 bits",
                            .got = fmt::format("shape {}, type {}", shape_text(shape), type.name)});
  }

  // ---- Data

  // The data begins at the next multiple of the alignment. A file without tensors may end before that.
  void find_data(std::uint64_t tensors) {
    const std::uint64_t end = cursor_.position(), begin = *align_up(end, header_.alignment);
    const std::uint64_t padding = tensors == 0 ? std::min(begin - end, cursor_.left()) : begin - end;
    const std::string_view bytes = cursor_.take(padding, "the padding after the header");
    if (std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != 0; }))
      cursor_.fail(GG_TRAIL, {.problem = "the padding after the header is not zero", .got = bytes_shown(bytes)});
    header_.data_offset = cursor_.position();
  }

  // Data and padding follow each other from the first byte to the last.
  void require_tiling() {
    const TensorInfo* previous = nullptr;
    std::uint64_t end = 0;
    for (const TensorInfo& tensor : header_.list.tensors) {
      const ErrorPlace here = at(file_.path, std::string(tensor.name));
      const std::uint64_t next = *align_up(end, header_.alignment);
      if (tensor.begin < end) {
        here.fail(GG_OFFSET, {.problem = "the tensor shares bytes with " + in_quotes(previous->name),
                              .expected = fmt::format("data from byte {}", next),
                              .got = fmt::format("[{}, {}) and [{}, {})", tensor.begin, tensor.end, previous->begin,
                                                 previous->end)});
      }
      if (tensor.begin > next) {
        here.fail(GG_OFFSET,
                  {.problem = fmt::format("{} bytes before the tensor belong to nothing", tensor.begin - next),
                   .expected = fmt::format("data from byte {}", next),
                   .got = fmt::format("{}", tensor.begin),
                   .hint = "such bytes may hide data; export the file again"});
      }
      end = tensor.end;
      previous = &tensor;
    }
    require_end(end);
  }

  void require_end(std::uint64_t end) {
    const std::uint64_t size = file_.size - header_.data_offset, padded = *align_up(end, header_.alignment);
    if (end > size) {
      const auto first = std::find_if(header_.list.tensors.begin(), header_.list.tensors.end(),
                                      [&](const TensorInfo& tensor) { return tensor.end > size; });
      const auto total = checked_add(header_.data_offset, end);
      at(file_.path, std::string(first->name))
          .fail(GG_TRUNC, {.problem = "the file ends before this tensor's data does",
                           .expected = total ? fmt::format("{} bytes in all", *total) : "more than 2^64 bytes in all",
                           .got = fmt::format("{} bytes", file_.size),
                           .hint = "the download is incomplete: fetch the file again and compare its checksum"});
    }
    if (size > padded) {
      if (!options_.allow_trailing_bytes) {
        at(file_.path)
            .fail(GG_TRAIL, {.problem = fmt::format("{} bytes follow the last tensor", size - padded),
                             .expected = fmt::format("{} bytes in all", header_.data_offset + padded),
                             .got = fmt::format("{} bytes", file_.size),
                             .hint = "--allow-trailing-bytes reads the file without them"});
      }
      note(fmt::format("{} bytes after the last tensor are ignored", size - padded));
    }
    if (size < padded) note(fmt::format("{} bytes of padding are missing at the end", padded - size));
  }

  const safetensors::FileFacts& file_;
  const Cursor::Read& read_;
  const OpenOptions& options_;
  Cursor cursor_;
  Header header_;
  std::uint64_t bad_texts_ = 0;
  std::string first_bad_text_;
};

}  // namespace

std::optional<std::uint64_t> align_up(std::uint64_t offset, std::uint32_t alignment) {
  const auto sum = checked_add(offset, std::uint64_t{alignment - 1});
  if (!sum) return std::nullopt;
  return *sum / alignment * alignment;
}

Header parse_header(const safetensors::FileFacts& file, const Cursor::Read& read, const OpenOptions& options) {
  return Parser(file, read, options).parse();
}

}  // namespace peft::gguf
