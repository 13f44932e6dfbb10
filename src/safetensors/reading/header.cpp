#include "safetensors/reading/header.h"

#include <fmt/core.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <random>
#include <vector>

#include "base/checked.h"
#include "base/system.h"
#include "peft/error.h"
#include "safetensors/reading/json.h"

namespace peft::safetensors {
namespace {

namespace dom = simdjson::dom;
using Type = dom::element_type;

// An odd but accepted thing that each tensor may have: it is counted and reported in one line.
struct Oddity {
  std::uint64_t count = 0;
  std::string first;  // the tensor, and the odd thing
  void add(std::string_view tensor, std::string_view thing) {
    if (count++ == 0) first = fmt::format("\"{}\" in \"{}\"", printable(thing), printable(tensor));
  }
};

struct EntryContext {
  const FileFacts& file;
  std::pmr::memory_resource& memory;
  Oddity unknown_fields{}, unknown_dtypes{};
  // Tensors of one file have few different shapes, so recent ones are shared instead of stored again.
  std::array<std::span<const std::int64_t>, 8> recent_shapes{};
  std::size_t next_shape = 0;
  const DtypeInfo* last_dtype = nullptr;  // most tensors have the dtype of the one before

  ErrorPlace at(std::string_view tensor) const { return peft::at(file.path, std::string(tensor)); }
};

std::string_view copy_text(std::string_view text, std::pmr::memory_resource& memory) {
  if (text.empty()) return {};
  auto* copy = static_cast<char*>(memory.allocate(text.size(), 1));
  std::memcpy(copy, text.data(), text.size());
  return {copy, text.size()};
}

// The seed is new in each process, so nobody can make a file whose names all collide.
std::uint64_t hash(std::string_view name) {
  static const std::uint64_t seed = std::random_device{}() * std::uint64_t{0x9E3779B97F4A7C15};
  return XXH3_64bits_withSeed(name.data(), name.size(), seed);
}

bool before(const TensorInfo& a, const TensorInfo& b) {
  if (a.begin != b.begin) return a.begin < b.begin;
  if (a.end != b.end) return a.end < b.end;  // an empty tensor stands before the one that begins at the same byte
  return a.name < b.name;
}

[[noreturn]] void refuse_gap(const TensorInfo* previous, const TensorInfo& tensor, std::uint64_t expected,
                             const FileFacts& file) {
  const std::string where = previous == nullptr ? "before the first tensor" : "after " + in_quotes(previous->name);
  at(file.path, std::string(tensor.name))
      .fail(ErrorCode::ST_HOLE,
            {.problem = fmt::format("{} bytes {} belong to no tensor", tensor.begin - expected, where),
             .expected = fmt::format("data from byte {}", expected),
             .got = fmt::format("{}", tensor.begin),
             .hint = "such bytes may hide data; export the file again"});
}

[[noreturn]] void refuse_overlap(const TensorInfo& previous, const TensorInfo& tensor, const FileFacts& file) {
  at(file.path, std::string(tensor.name))
      .fail(ErrorCode::ST_OVERLAP,
            {.problem = "the tensor shares bytes with " + in_quotes(previous.name),
             .expected = fmt::format("data from byte {}", previous.end),
             .got = fmt::format("[{}, {}) and [{}, {})", tensor.begin, tensor.end, previous.begin, previous.end)});
}

[[noreturn]] void refuse_truncated(std::span<const TensorInfo> tensors, std::uint64_t data_offset,
                                   std::uint64_t data_size, const FileFacts& file) {
  const auto first =
      std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.end > data_size; });
  const auto total = checked_add(data_offset, tensors.back().end);
  at(file.path, std::string(first->name))
      .fail(ErrorCode::ST_TRUNC,
            {.problem = "the file ends before this tensor's data does",
             .expected = total ? fmt::format("{} bytes in all", *total) : "more than 2^64 bytes in all",
             .got = fmt::format("{} bytes", file.size),
             .hint = "the download is incomplete: fetch the file again and compare its checksum"});
}

constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

// The index of the field in kFields, or its size. Comparing with constants is much faster than with the table.
std::size_t field_number(std::string_view key) {
  if (key == "dtype") return 0;
  if (key == "shape") return 1;
  if (key == "data_offsets") return 2;
  return kFields.size();
}

// A value as an error shows it: numbers and strings themselves, of everything else the type.
std::string shown(dom::element value) {
  switch (value.type()) {
    case Type::INT64:
    case Type::UINT64:
    case Type::DOUBLE:
      return simdjson::minify(value);
    case Type::STRING:
      return "the string \"" + printable(std::string_view(value)) + "\"";
    default:
      return std::string(type_name(value));
  }
}

// An integer without sign, fraction or exponent.
bool is_unsigned(dom::element value) {
  if (value.type() == Type::UINT64) return true;
  return value.type() == Type::INT64 && std::int64_t(value) >= 0;
}

std::span<const std::int64_t> store_shape(std::span<const std::int64_t> shape, EntryContext& context) {
  if (shape.empty()) return {};
  for (const auto recent : context.recent_shapes) {
    if (std::equal(recent.begin(), recent.end(), shape.begin(), shape.end())) return recent;
  }
  auto* copy = static_cast<std::int64_t*>(context.memory.allocate(shape.size_bytes(), alignof(std::int64_t)));
  std::copy(shape.begin(), shape.end(), copy);
  auto& recent = context.recent_shapes[context.next_shape++ % context.recent_shapes.size()];
  recent = {copy, shape.size()};
  return recent;
}

[[noreturn]] void refuse_rank(std::string_view tensor, std::size_t rank, const EntryContext& context) {
  context.at(tensor).fail(ErrorCode::ST_LIMIT, {.problem = "the tensor has too many dimensions",
                                                .expected = fmt::format("at most {}", kMaxRank),
                                                .got = fmt::format("{}", rank)});
}

std::span<const std::int64_t> parse_shape(dom::element value, std::string_view tensor, EntryContext& context) {
  if (!value.is_array())
    context.at(tensor).fail(ErrorCode::ST_FIELD,
                            {.problem = "shape has the wrong type", .expected = "an array", .got = shown(value)});
  const dom::array dimensions = value;
  std::array<std::int64_t, kMaxRank> shape;  // the first `rank` are set
  std::size_t rank = 0;
  for (const dom::element dimension : dimensions) {
    if (!is_unsigned(dimension)) {
      context.at(tensor).fail(ErrorCode::ST_SHAPE, {.problem = fmt::format("dimension {} of the shape is wrong", rank),
                                                    .expected = "an unsigned integer",
                                                    .got = shown(dimension)});
    }
    if (rank < kMaxRank) shape[rank] = static_cast<std::int64_t>(std::uint64_t(dimension));
    ++rank;
  }
  if (rank > kMaxRank) refuse_rank(tensor, rank, context);
  return store_shape(std::span(shape).first(rank), context);
}

void parse_offsets(dom::element value, TensorInfo& tensor, const EntryContext& context) {
  if (!value.is_array()) {
    context.at(tensor.name)
        .fail(ErrorCode::ST_FIELD,
              {.problem = "data_offsets has the wrong type", .expected = "an array", .got = shown(value)});
  }
  const dom::array offsets = value;
  std::size_t count = 0;
  for (const dom::element offset : offsets) {
    if (!is_unsigned(offset)) {
      context.at(tensor.name)
          .fail(ErrorCode::ST_OFFSETS, {.problem = fmt::format("number {} of data_offsets is wrong", count),
                                        .expected = "an unsigned integer",
                                        .got = shown(offset)});
    }
    if (count == 0) tensor.begin = offset;
    if (count == 1) tensor.end = offset;
    ++count;
  }
  if (count != 2) {
    context.at(tensor.name)
        .fail(
            ErrorCode::ST_OFFSETS,
            {.problem = "data_offsets has the wrong length", .expected = "2 numbers", .got = fmt::format("{}", count)});
  }
  if (tensor.end < tensor.begin) {
    context.at(tensor.name)
        .fail(ErrorCode::ST_OFFSETS, {.problem = "data_offsets end before they begin",
                                      .expected = fmt::format("an end of at least {}", tensor.begin),
                                      .got = fmt::format("{}", tensor.end)});
  }
}

void parse_dtype_field(dom::element value, TensorInfo& tensor, EntryContext& context) {
  if (!value.is_string()) {
    context.at(tensor.name)
        .fail(ErrorCode::ST_FIELD,
              {.problem = "dtype has the wrong type", .expected = "a string", .got = shown(value)});
  }
  const std::string_view name = value;
  if (context.last_dtype == nullptr || context.last_dtype->name != name) {
    const auto rows = dtypes();
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const DtypeInfo& known) { return known.name == name; });
    context.last_dtype = row == rows.end() ? nullptr : &*row;
  }
  if (context.last_dtype != nullptr) {
    tensor.dtype = context.last_dtype->dtype;
    tensor.dtype_name = context.last_dtype->name;
    return;
  }
  if (name.size() > kMaxName) {
    context.at(tensor.name)
        .fail(ErrorCode::ST_LIMIT, {.problem = "the dtype's name is too long",
                                    .expected = fmt::format("at most {} bytes", kMaxName),
                                    .got = fmt::format("{} bytes", name.size())});
  }
  tensor.dtype_name = copy_text(name, context.memory);
  context.unknown_dtypes.add(tensor.name, name);
}

// The byte range must have the size that shape and dtype give. For an unknown dtype only the number of elements can be
// checked.
void check_size(const TensorInfo& tensor, const EntryContext& context) {
  const TensorSize size = tensor_size(tensor.shape, info(tensor.dtype).bits);
  const auto what = [&] {  // dimensions are unsigned in the file
    const std::vector<std::uint64_t> dimensions(tensor.shape.begin(), tensor.shape.end());
    return fmt::format("shape [{}], dtype {}", fmt::join(dimensions, ", "), tensor.dtype_name);
  };
  switch (size.fault) {
    case SizeFault::elements:
      context.at(tensor.name)
          .fail(ErrorCode::ST_OVERFLOW, {.problem = "the number of elements does not fit 64 bits", .got = what()});
    case SizeFault::bits:
      context.at(tensor.name)
          .fail(ErrorCode::ST_OVERFLOW, {.problem = "the size in bits does not fit 64 bits", .got = what()});
    case SizeFault::fraction:
      context.at(tensor.name)
          .fail(ErrorCode::ST_BITS,
                {.problem = fmt::format("elements of {} bits do not fill whole bytes", info(tensor.dtype).bits),
                 .expected = "a multiple of 8 bits",
                 .got = what()});
    case SizeFault::none:
      break;
  }
  for (const std::int64_t dimension : tensor.shape) {
    if (dimension < 0) {  // 2^63 or more, in a tensor of no elements
      context.at(tensor.name)
          .fail(
              ErrorCode::ST_LIMIT,
              {.problem = "a dimension is too large", .expected = fmt::format("at most {}", INT64_MAX), .got = what()});
    }
  }
  if (tensor.dtype != Dtype::unknown && size.bytes != tensor.bytes()) {
    context.at(tensor.name)
        .fail(ErrorCode::ST_SIZE,
              {.problem = "the byte range does not fit " + what(),
               .expected = fmt::format("{} bytes", size.bytes),
               .got = fmt::format("{} bytes at [{}, {})", tensor.bytes(), tensor.begin, tensor.end)});
  }
}

namespace dom = simdjson::dom;
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kWhitespace = " \t\r\n";

void sort_by_offset(std::span<TensorInfo> tensors) {
  if (!std::is_sorted(tensors.begin(), tensors.end(), before)) std::sort(tensors.begin(), tensors.end(), before);
}

void require_exact_coverage(std::span<const TensorInfo> tensors, std::uint64_t data_offset, const FileFacts& file,
                            const OpenOptions& options, std::vector<std::string>& notes) {
  const TensorInfo* previous = nullptr;
  std::uint64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin > covered) refuse_gap(previous, tensor, covered, file);
    if (tensor.begin < covered) refuse_overlap(*previous, tensor, file);
    covered = tensor.end;
    previous = &tensor;
  }
  const std::uint64_t data_size = file.size - data_offset;
  if (covered > data_size) refuse_truncated(tensors, data_offset, data_size, file);
  if (covered == data_size) return;
  const std::uint64_t extra = data_size - covered;
  if (!options.allow_trailing_bytes) {
    at(file.path).fail(ErrorCode::ST_TRAIL, {.problem = fmt::format("{} bytes follow the last tensor", extra),
                                             .expected = fmt::format("{} bytes in all", data_offset + covered),
                                             .got = fmt::format("{} bytes", file.size),
                                             .hint = "--allow-trailing-bytes reads the file without them"});
  }
  notes.push_back(fmt::format("{} bytes after the last tensor are ignored", extra));
}

TensorInfo parse_entry(std::string_view name, dom::element value, EntryContext& context) {
  TensorInfo tensor;
  tensor.name = name;
  if (!value.is_object())
    context.at(name).fail(
        ErrorCode::ST_FIELD,
        {.problem = "the tensor's entry has the wrong type", .expected = "an object", .got = shown(value)});
  const dom::object fields = value;
  std::array<bool, kFields.size()> seen{};
  bool others = false;
  for (const auto [key, field] : fields) {
    const std::size_t known = field_number(key);
    if (known == kFields.size()) {
      others = true;
      context.unknown_fields.add(name, key);
      continue;
    }
    if (std::exchange(seen[known], true)) {
      context.at(name).fail(ErrorCode::ST_DUP, {.problem = fmt::format("the field \"{}\" appears twice", key),
                                                .hint = "readers may see different tensors; export the file again"});
    }
    if (known == 0) parse_dtype_field(field, tensor, context);
    if (known == 1) tensor.shape = parse_shape(field, name, context);
    if (known == 2) parse_offsets(field, tensor, context);
  }
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    if (!seen[i])
      context.at(name).fail(ErrorCode::ST_FIELD, {.problem = fmt::format("the field \"{}\" is missing", kFields[i])});
  }
  if (others) require_distinct_keys(value, name, context.file);
  check_size(tensor, context);
  return tensor;
}

void require_object(std::string_view json, const FileFacts& file) {
  const auto start = json.find_first_not_of(kWhitespace);
  if (start != std::string_view::npos && json[start] == '{') return;
  if (start == std::string_view::npos)
    at(file.path).fail(
        ErrorCode::ST_HDRJSON,
        {.problem = "the header is empty", .expected = "a JSON object", .got = fmt::format("{} bytes", json.size())});
  at(file.path).fail(ErrorCode::ST_HDRJSON, {.problem = "the header is not a JSON object",
                                             .expected = "\"{\"",
                                             .got = fmt::format("byte 0x{:02x} at offset {} of the header",
                                                                static_cast<unsigned char>(json[start]), start)});
}

// The parser needs memory for each value, so the number of values is limited before it runs. The entry of a tensor has
// at most kMaxRank + 4 commas. The other commas are left for texts of the metadata and unknown fields.
void limit_values(std::string_view json, const FileFacts& file, const OpenOptions& options) {
  constexpr std::uint64_t kCommasPerTensor = kMaxRank + 8;
  const std::uint64_t tensors = std::min<std::uint64_t>(options.max_tensors, kMaxHeader) + 100'000;
  if (json.size() <= tensors * kCommasPerTensor) return;  // too short for so many: no need to count
  const auto commas = static_cast<std::uint64_t>(std::count(json.begin(), json.end(), ','));
  if (commas <= tensors * kCommasPerTensor) return;
  at(file.path).fail(ErrorCode::ST_LIMIT, {.problem = "the header has too many values",
                                           .expected = fmt::format("at most {} tensors", options.max_tensors),
                                           .got = fmt::format("{} commas", commas),
                                           .hint = "--max-tensors raises the limit"});
}

[[noreturn]] void refuse_name(std::string_view name, const FileFacts& file) {
  if (name.empty()) at(file.path).fail(ErrorCode::ST_NAME, {.problem = "a tensor has an empty name"});
  at(file.path, std::string(name))
      .fail(ErrorCode::ST_NAME, {.problem = "the tensor's name is too long",
                                 .expected = fmt::format("at most {} bytes", kMaxName),
                                 .got = fmt::format("{} bytes", name.size())});
}

void add_metadata(dom::element value, Header& header, const FileFacts& file) {
  if (value.is_null()) {
    header.notes.emplace_back("__metadata__ is null");
    return;
  }
  if (!value.is_object()) {
    at(file.path, std::string(kMetadataKey))
        .fail(ErrorCode::ST_META, {.problem = "__metadata__ has the wrong type",
                                   .expected = "an object of strings",
                                   .got = std::string(type_name(value))});
  }
  const dom::object fields = value;
  for (const auto [key, text] : fields) {
    if (!text.is_string()) {
      at(file.path, std::string(kMetadataKey))
          .fail(ErrorCode::ST_META, {.problem = fmt::format("the value of \"{}\" has the wrong type", printable(key)),
                                     .expected = "a string",
                                     .got = std::string(type_name(text)),
                                     .hint = "all values of __metadata__ must be strings"});
    }
    const std::string_view content = text;
    if (key.size() > kMaxName || content.size() > kMaxMetadataValue) {
      at(file.path, std::string(kMetadataKey))
          .fail(ErrorCode::ST_LIMIT,
                {.problem = fmt::format("the entry \"{}\" is too long", printable(key)),
                 .expected = fmt::format("at most {} bytes", key.size() > kMaxName ? kMaxName : kMaxMetadataValue),
                 .got = fmt::format("{} bytes", key.size() > kMaxName ? key.size() : content.size())});
    }
    if (!header.metadata.emplace(key, content).second) {
      at(file.path, std::string(kMetadataKey))
          .fail(ErrorCode::ST_DUP, {.problem = fmt::format("the key \"{}\" appears twice", printable(key)),
                                    .hint = "readers may see different values; export the file again"});
    }
  }
}

std::uint64_t count_fields(dom::object fields) {
  constexpr std::size_t kSaturated = 0xFFFFFF;  // simdjson counts no further
  if (fields.size() < kSaturated) return fields.size();
  std::uint64_t count = 0;
  for ([[maybe_unused]] const auto field : fields) ++count;
  return count;
}

void limit_tensors(std::uint64_t count, const FileFacts& file, const OpenOptions& options) {
  if (count <= options.max_tensors) return;
  at(file.path).fail(ErrorCode::ST_LIMIT, {.problem = "the file has too many tensors",
                                           .expected = fmt::format("at most {}", options.max_tensors),
                                           .got = fmt::format("{}", count),
                                           .hint = "--max-tensors raises the limit"});
}

TensorInfo* allocate_tensors(std::uint64_t count, std::pmr::memory_resource& memory) {
  return static_cast<TensorInfo*>(
      memory.allocate(std::max<std::uint64_t>(count, 1) * sizeof(TensorInfo), alignof(TensorInfo)));
}

void add_tensors(dom::object fields, Header& header, const FileFacts& file, const OpenOptions& options) {
  const std::uint64_t count = count_fields(fields);
  if (count > options.max_tensors && count - 1 > options.max_tensors)  // one field may be the metadata
    limit_tensors(count, file, options);
  EntryContext context{.file = file, .memory = *header.memory};
  TensorInfo* tensors = allocate_tensors(count, *header.memory);
  std::size_t used = 0;
  bool has_metadata = false;
  for (const auto [key, value] : fields) {
    if (key == kMetadataKey) {
      if (std::exchange(has_metadata, true))
        at(file.path, std::string(kMetadataKey)).fail(ErrorCode::ST_DUP, {.problem = "__metadata__ appears twice"});
      add_metadata(value, header, file);
      continue;
    }
    if (key.empty() || key.size() > kMaxName) refuse_name(key, file);
    new (tensors + used++) TensorInfo(parse_entry(copy_text(key, *header.memory), value, context));
  }
  sort_by_offset({tensors, used});
  header.tensors = {tensors, used};
  const auto tell = [&](const Oddity& oddity, std::string_view what) {
    if (oddity.count != 0)
      header.notes.push_back(fmt::format("{} of an unknown {}, first {}", oddity.count, what, oddity.first));
  };
  tell(context.unknown_fields, "field");
  tell(context.unknown_dtypes, "dtype");
}

void refuse_duplicate(const Header& header, const FileFacts& file) {
  const auto [first, second] = header.names.duplicate();
  if (first == NameIndex::kNone) return;
  const TensorInfo &a = header.tensors[first], &b = header.tensors[second];
  at(file.path, std::string(a.name))
      .fail(ErrorCode::ST_DUP, {.problem = "two tensors have this name",
                                .got = fmt::format("data at [{}, {}) and [{}, {})", a.begin, a.end, b.begin, b.end),
                                .hint = "the file is ambiguous: readers may see different tensors; export it again"});
}

}  // namespace

NameIndex::NameIndex(std::span<const TensorInfo> tensors, std::pmr::memory_resource& memory) : tensors_(tensors) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(8, tensors.size() + tensors.size() / 2));
  slots_ = {static_cast<Slot*>(memory.allocate(size * sizeof(Slot), alignof(Slot))), size};
  std::fill(slots_.begin(), slots_.end(), Slot{0, 0});
  // The hash of a name is taken some steps before its slot is needed, so that the slot is in the cache by then.
  constexpr std::size_t kAhead = 16;
  std::array<std::uint64_t, kAhead> codes{};
  for (std::size_t step = 0; step < tensors.size() + kAhead; ++step) {
    std::uint64_t& code = codes[step % kAhead];
    if (step >= kAhead) insert(static_cast<std::uint32_t>(step - kAhead), code);
    if (step >= tensors.size()) continue;
    code = hash(tensors[step].name);
    __builtin_prefetch(&slots_[code & (size - 1)], 1);
  }
}

void NameIndex::insert(std::uint32_t number, std::uint64_t code) {
  const auto tag = static_cast<std::uint32_t>(code >> 32);
  std::size_t at = code & (slots_.size() - 1);
  for (; slots_[at].number != 0; at = (at + 1) & (slots_.size() - 1)) {
    const std::uint32_t other = slots_[at].number - 1;
    if (slots_[at].tag != tag || tensors_[other].name != tensors_[number].name) continue;
    if (duplicate_.first == kNone) duplicate_ = {other, number};
  }
  slots_[at] = {tag, number + 1};
}

std::uint32_t NameIndex::find(std::string_view name) const {
  if (slots_.empty()) return kNone;
  const std::uint64_t code = hash(name);
  const auto tag = static_cast<std::uint32_t>(code >> 32);
  for (std::size_t at = code & (slots_.size() - 1); slots_[at].number != 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].tag == tag && tensors_[slots_[at].number - 1].name == name) return slots_[at].number - 1;
  }
  return kNone;
}

std::uint64_t header_length(std::string_view start, const FileFacts& file) {
  if (file.size < kLengthBytes) {
    at(file.path).fail(ErrorCode::ST_SHORT, {.problem = "the file is too short to be a safetensors file",
                                             .expected = fmt::format("at least {} bytes", kLengthBytes),
                                             .got = fmt::format("{} bytes", file.size),
                                             .hint = "the download is incomplete: fetch the file again"});
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::uint64_t{static_cast<unsigned char>(start[i])} << (8 * i);
  if (length > kMaxHeader) {
    at(file.path).fail(ErrorCode::ST_HDRBIG, {.problem = "the header is said to be too long",
                                              .expected = fmt::format("at most {} bytes", kMaxHeader),
                                              .got = fmt::format("{} bytes", length),
                                              .hint = "is this a safetensors file?"});
  }
  if (length > file.size - kLengthBytes) {
    at(file.path).fail(ErrorCode::ST_HDRLEN, {.problem = "the header is said to be longer than the file",
                                              .expected = fmt::format("at most {} bytes in a file of {} bytes",
                                                                      file.size - kLengthBytes, file.size),
                                              .got = fmt::format("{} bytes", length),
                                              .hint = "the download is incomplete: fetch the file again"});
  }
  return length;
}

Header parse_header(std::string_view json, const FileFacts& file, const OpenOptions& options) {
  require_object(json, file);
  limit_values(json, file, options);
  dom::element root;
  if (const auto error = parse_json(json).get(root)) {
    if (error == simdjson::MEMALLOC) throw std::bad_alloc();
    explain_json_fault(json, simdjson::error_message(error), file);
  }
  refuse_negative_zero(json, file);
  Header header;
  const std::size_t guess = json.size() + json.size() / 2 + 1024;  // of all names, shapes and tables
  header.memory = std::make_unique<std::pmr::monotonic_buffer_resource>(guess, &HugePageResource::get());
  add_tensors(root, header, file, options);
  header.names = NameIndex(header.tensors, *header.memory);
  refuse_duplicate(header, file);
  const std::uint64_t data_offset = kLengthBytes + json.size();
  require_exact_coverage(header.tensors, data_offset, file, options, header.notes);
  if (json.front() != '{') header.notes.emplace_back("white space precedes the header's JSON");
  if (data_offset % 8 != 0)
    header.notes.push_back(fmt::format("the data begins at byte {}, not at a multiple of 8", data_offset));
  return header;
}

Header describe_memory(std::span<const TensorInMemory> tensors, const std::byte* origin, const FileFacts& file,
                       const OpenOptions& options) {
  limit_tensors(tensors.size(), file, options);
  Header header;
  header.memory =
      std::make_unique<std::pmr::monotonic_buffer_resource>(tensors.size() * 256 + 1024, &HugePageResource::get());
  EntryContext context{.file = file, .memory = *header.memory};
  TensorInfo* entries = allocate_tensors(tensors.size(), *header.memory);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInMemory& given = tensors[i];
    if (given.name.empty() || given.name.size() > kMaxName) refuse_name(given.name, file);
    if (given.shape.size() > kMaxRank) refuse_rank(given.name, given.shape.size(), context);
    TensorInfo& tensor = *new (entries + i) TensorInfo;
    tensor.name = copy_text(given.name, *header.memory);
    tensor.dtype = given.dtype;
    tensor.dtype_name = info(given.dtype).name;
    tensor.shape = store_shape(given.shape, context);
    tensor.begin = given.data == nullptr ? 0 : static_cast<std::uint64_t>(given.data - origin);
    tensor.end = tensor.begin + tensor_size(tensor.shape, info(tensor.dtype).bits).bytes;
    check_size(tensor, context);
  }
  header.tensors = {entries, tensors.size()};
  sort_by_offset({entries, tensors.size()});
  header.names = NameIndex(header.tensors, *header.memory);
  refuse_duplicate(header, file);
  return header;
}

}  // namespace peft::safetensors
