#include "safetensors/json_parser.h"

#include <algorithm>
#include <memory>
#include <memory_resource>
#include <vector>

#include "base/system.h"
#include "safetensors/header.h"

namespace peft::safetensors {
namespace {

// Memory of longer texts is given back after use.
constexpr std::size_t kMaxKept = std::size_t{32} << 20;

struct ThreadMemory {
  std::unique_ptr<simdjson::dom::parser> parser;
  std::pmr::vector<char> buffer{&HugePageResource::get()};
};

ThreadMemory& thread_memory() {
  static thread_local ThreadMemory memory;
  return memory;
}

// Before they are touched for the first time, the parser's arrays are asked to lie on huge pages.
simdjson::error_code reserve(simdjson::dom::parser& parser, std::size_t length) {
  if (parser.capacity() >= length) return simdjson::SUCCESS;
  if (const auto error = parser.allocate(length, kMaxDepth)) return error;
  if (const auto error = parser.doc.allocate(length)) return error;
  advise_huge_pages(parser.doc.tape.get(), length * sizeof(std::uint64_t));
  advise_huge_pages(parser.doc.string_buf.get(), length);
  advise_huge_pages(parser.implementation->structural_indexes.get(), length * sizeof(std::uint32_t));
  return simdjson::SUCCESS;
}

}  // namespace

simdjson::simdjson_result<simdjson::dom::element> parse_json(std::string_view json) {
  auto& parser = thread_memory().parser;
  if (parser == nullptr || (parser->capacity() > kMaxKept && json.size() <= kMaxKept)) {
    parser = std::make_unique<simdjson::dom::parser>();
  }
  if (const auto error = reserve(*parser, std::max<std::size_t>(json.size(), 4096))) return error;
  return parser->parse(json.data(), json.size(), false);
}

std::size_t json_padding() { return simdjson::SIMDJSON_PADDING; }

std::span<char> json_buffer(std::size_t length) {
  auto& buffer = thread_memory().buffer;
  const std::size_t needed = length + simdjson::SIMDJSON_PADDING;
  if (buffer.capacity() > kMaxKept && needed <= kMaxKept) std::pmr::vector<char>(&HugePageResource::get()).swap(buffer);
  if (buffer.size() < needed) buffer.resize(needed);
  return std::span(buffer).first(length);
}

void release_json_memory() { thread_memory() = ThreadMemory(); }

}  // namespace peft::safetensors
