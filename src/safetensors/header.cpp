#include "safetensors/header.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/system.h"
#include "safetensors/header_parts.h"
#include "safetensors/json_parser.h"

namespace peft::safetensors {
namespace {

namespace dom = simdjson::dom;
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kWhitespace = " \t\r\n";

[[noreturn]] void fail(ErrorCode code, const FileFacts& file, std::string tensor, std::string problem,
                       std::string expected, std::string got, std::string hint = {}) {
  throw Error(code, {.file = file.path,
                     .tensor = std::move(tensor),
                     .problem = std::move(problem),
                     .expected = std::move(expected),
                     .got = std::move(got),
                     .hint = std::move(hint)});
}

void require_object(std::string_view json, const FileFacts& file) {
  const auto start = json.find_first_not_of(kWhitespace);
  if (start != std::string_view::npos && json[start] == '{') return;
  if (start == std::string_view::npos)
    fail(ErrorCode::ST_HDRJSON, file, {}, "the header is empty", "a JSON object", fmt::format("{} bytes", json.size()));
  fail(ErrorCode::ST_HDRJSON, file, {}, "the header is not a JSON object", "\"{\"",
       fmt::format("byte 0x{:02x} at offset {} of the header", static_cast<unsigned char>(json[start]), start));
}

// The parser needs memory for each value, so their number is bounded before it runs. A tensor's entry has at most
// kMaxRank + 4 commas; the rest is for metadata texts and unknown fields.
void limit_values(std::string_view json, const FileFacts& file, const OpenOptions& options) {
  constexpr std::uint64_t kCommasPerTensor = kMaxRank + 8;
  const std::uint64_t tensors = std::min<std::uint64_t>(options.max_tensors, kMaxHeader) + 100'000;
  if (json.size() <= tensors * kCommasPerTensor) return;  // too short for so many: no need to count
  const auto commas = static_cast<std::uint64_t>(std::count(json.begin(), json.end(), ','));
  if (commas <= tensors * kCommasPerTensor) return;
  fail(ErrorCode::ST_LIMIT, file, {}, "the header has too many values",
       fmt::format("at most {} tensors", options.max_tensors), fmt::format("{} commas", commas),
       "--max-tensors raises the limit");
}

void refuse_name(std::string_view name, const FileFacts& file) {
  if (name.empty()) fail(ErrorCode::ST_NAME, file, {}, "a tensor has an empty name", "", "");
  fail(ErrorCode::ST_NAME, file, std::string(name), "the tensor's name is too long",
       fmt::format("at most {} bytes", kMaxName), fmt::format("{} bytes", name.size()));
}

void add_metadata(dom::element value, Header& header, const FileFacts& file) {
  if (value.is_null()) {
    header.notes.emplace_back("__metadata__ is null");
    return;
  }
  if (!value.is_object()) {
    fail(ErrorCode::ST_META, file, std::string(kMetadataKey), "__metadata__ has the wrong type", "an object of strings",
         std::string(type_name(value)));
  }
  const dom::object fields = value;
  for (const auto [key, text] : fields) {
    if (!text.is_string()) {
      fail(ErrorCode::ST_META, file, std::string(kMetadataKey),
           fmt::format("the value of \"{}\" has the wrong type", printable(key)), "a string",
           std::string(type_name(text)), "all values of __metadata__ must be strings");
    }
    const std::string_view content = text;
    if (key.size() > kMaxName || content.size() > kMaxMetadataValue) {
      fail(ErrorCode::ST_LIMIT, file, std::string(kMetadataKey),
           fmt::format("the entry \"{}\" is too long", printable(key)),
           fmt::format("at most {} bytes", key.size() > kMaxName ? kMaxName : kMaxMetadataValue),
           fmt::format("{} bytes", key.size() > kMaxName ? key.size() : content.size()));
    }
    if (!header.metadata.emplace(key, content).second) {
      fail(ErrorCode::ST_DUP, file, std::string(kMetadataKey),
           fmt::format("the key \"{}\" appears twice", printable(key)), "", "",
           "readers may see different values; export the file again");
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

void add_tensors(dom::object fields, Header& header, const FileFacts& file, const OpenOptions& options) {
  const std::uint64_t count = count_fields(fields);
  if (count > options.max_tensors && count - 1 > options.max_tensors) {  // one field may be the metadata
    fail(ErrorCode::ST_LIMIT, file, {}, "the file has too many tensors", fmt::format("at most {}", options.max_tensors),
         fmt::format("{}", count), "--max-tensors raises the limit");
  }
  EntryContext context{.file = file, .memory = *header.memory};
  auto* tensors = static_cast<TensorInfo*>(
      header.memory->allocate(std::max<std::uint64_t>(count, 1) * sizeof(TensorInfo), alignof(TensorInfo)));
  std::size_t used = 0;
  bool has_metadata = false;
  for (const auto [key, value] : fields) {
    if (key == kMetadataKey) {
      if (std::exchange(has_metadata, true))
        fail(ErrorCode::ST_DUP, file, std::string(kMetadataKey), "__metadata__ appears twice", "", "");
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
  fail(ErrorCode::ST_DUP, file, std::string(a.name), "two tensors have this name", "",
       fmt::format("data at [{}, {}) and [{}, {})", a.begin, a.end, b.begin, b.end),
       "the file is ambiguous: readers may see different tensors; export it again");
}

}  // namespace

std::uint64_t header_length(std::string_view start, const FileFacts& file) {
  if (file.size < kLengthBytes) {
    fail(ErrorCode::ST_SHORT, file, {}, "the file is too short to be a safetensors file",
         fmt::format("at least {} bytes", kLengthBytes), fmt::format("{} bytes", file.size),
         "the download is incomplete: fetch the file again");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::uint64_t{static_cast<unsigned char>(start[i])} << (8 * i);
  if (length > kMaxHeader) {
    fail(ErrorCode::ST_HDRBIG, file, {}, "the header is said to be too long",
         fmt::format("at most {} bytes", kMaxHeader), fmt::format("{} bytes", length), "is this a safetensors file?");
  }
  if (length > file.size - kLengthBytes) {
    fail(ErrorCode::ST_HDRLEN, file, {}, "the header is said to be longer than the file",
         fmt::format("at most {} bytes in a file of {} bytes", file.size - kLengthBytes, file.size),
         fmt::format("{} bytes", length), "the download is incomplete: fetch the file again");
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

}  // namespace peft::safetensors
