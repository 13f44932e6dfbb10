#include "safetensors/reading/shard_index.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "base/text.h"
#include "peft/error.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/reading/json.h"

namespace peft::safetensors {
namespace {

namespace dom = simdjson::dom;

constexpr std::uint64_t kMaxIndex = std::uint64_t{64} << 20;  // bytes
constexpr std::size_t kMaxShardName = 255;
constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kForm = "{\"metadata\": {...}, \"weight_map\": {tensor: file}}";

// The name of a shard is one plain path component. It cannot leave the folder on any system, and it has no character
// that a terminal would obey.
bool is_plain_file_name(std::string_view name) {
  if (name.size() <= kSuffix.size() || name.size() > kMaxShardName || !name.ends_with(kSuffix)) return false;
  if (name.front() == '.') return false;
  if (find_invalid_utf8(name) != std::string_view::npos || printable(name, kMaxShardName) != name) return false;
  return name.find_first_of("/\\:") == std::string_view::npos;
}

void read_weight_map(dom::element value, ShardIndex& index) {
  if (!value.is_object()) {
    at(index.path, "weight_map")
        .fail(ErrorCode::IX_FORM, {.problem = "weight_map has the wrong type",
                                   .expected = "an object",
                                   .got = std::string(type_name(value))});
  }
  const dom::object map = value;
  index.files.reserve(map.size());
  for (const auto [tensor, file] : map) {
    if (!file.is_string()) {
      at(index.path, std::string(tensor))
          .fail(ErrorCode::IX_FORM, {.problem = "the tensor's file has the wrong type",
                                     .expected = "a string",
                                     .got = std::string(type_name(file))});
    }
    const std::string_view name = file;
    if (!is_plain_file_name(name)) {
      at(index.path, std::string(tensor))
          .fail(ErrorCode::IX_PATH, {.problem = "the tensor's file is not a plain file name",
                                     .expected = "NAME.safetensors in the same folder",
                                     .got = "\"" + printable(name) + "\"",
                                     .hint = "a shard must lie beside its index"});
    }
    index.files.emplace_back(tensor, name);
  }
  std::sort(index.files.begin(), index.files.end());
}

// A wrong total_size is common and harmless: it becomes a note, never an error.
void read_total_size(dom::object root, ShardIndex& index) {
  dom::element metadata, total;
  if (root["metadata"].get(metadata) != simdjson::SUCCESS || metadata["total_size"].get(total) != simdjson::SUCCESS) {
    index.notes.emplace_back("the index states no total_size");
    return;
  }
  std::uint64_t size = 0;
  if (total.is_string() || total.get(size) != simdjson::SUCCESS) {
    index.notes.push_back(
        fmt::format("the index states a total_size that is no size: {}", printable(simdjson::minify(total))));
    return;
  }
  index.total_size = size;
}

dom::element parse_root(std::string_view text, const FileFacts& facts) {
  const std::span<char> buffer = json_buffer(text.size());
  if (!text.empty()) std::memcpy(buffer.data(), text.data(), text.size());
  dom::element root;
  if (const auto error = parse_json({buffer.data(), buffer.size()}).get(root)) {
    if (error == simdjson::MEMALLOC) throw std::bad_alloc();
    try {
      explain_json_fault(text, simdjson::error_message(error), facts);
    } catch (const Error& fault) {
      if (fault.code() != ErrorCode::ST_HDRJSON && fault.code() != ErrorCode::ST_HDRPAD) throw;
      throw Error(ErrorCode::IX_FORM, fault.detail());
    }
  }
  if (!root.is_object())
    at(facts.path)
        .fail(ErrorCode::IX_FORM, {.problem = "the index is not a JSON object",
                                   .expected = std::string(kForm),
                                   .got = std::string(type_name(root))});
  return root;
}

}  // namespace

std::vector<std::string> ShardIndex::shards() const {
  std::vector<std::string> names;
  for (const auto& [tensor, file] : files) names.push_back(file);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

ShardIndex parse_shard_index(std::string_view text, const std::string& path) {
  const FileFacts facts{path, text.size(), "index"};
  const dom::element parsed = parse_root(text, facts);
  require_distinct_keys(parsed, "", facts);
  const dom::object root = parsed;
  ShardIndex index;
  index.path = path;
  dom::element map;
  if (root["weight_map"].get(map) != simdjson::SUCCESS) {
    at(path, "weight_map")
        .fail(ErrorCode::IX_FORM, {.problem = "the index has no weight_map", .expected = std::string(kForm)});
  }
  read_weight_map(map, index);
  read_total_size(root, index);
  return index;
}

ShardIndex read_shard_index(const std::string& path) {
  const InputFile file(path);
  if (file.size() > kMaxIndex) {
    at(path).fail(ErrorCode::ST_LIMIT, {.problem = "the index is too long",
                                        .expected = fmt::format("at most {} bytes", kMaxIndex),
                                        .got = fmt::format("{} bytes", file.size())});
  }
  std::string text(file.size(), '\0');
  file.read(0, text);
  return parse_shard_index(text, path);
}

}  // namespace peft::safetensors
