#include "safetensors/reading/json.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <memory>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/system.h"
#include "base/text.h"
#include "peft/error.h"

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

namespace dom = simdjson::dom;

std::string byte_at(std::string_view json, std::size_t offset, const FileFacts& file) {
  return fmt::format("byte 0x{:02x} at offset {} of the {}", static_cast<unsigned char>(json[offset]), offset,
                     file.part);
}

// The four hexadecimal digits of a \u escape at `at`, or -1.
int unicode_escape(std::string_view json, std::size_t at) {
  if (json.size() < at + 6 || json[at] != '\\' || json[at + 1] != 'u') return -1;
  int value = 0;
  for (const char c : json.substr(at + 2, 4)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Walks over brackets and strings, and throws for the faults that the next parser does not name. It stops silently at
// the first thing it does not understand.
class Scan {
 public:
  Scan(std::string_view json, const FileFacts& file) : json_(json), file_(file) {}

  void run() {
    for (std::size_t i = 0; i < json_.size(); ++i) {
      const char c = json_[i];
      if (c == '"') {
        i = end_of_string(i + 1);
      } else if (c == '{' || c == '[') {
        if (depth_ == kMaxDepth) {
          at(file_.path)
              .fail(ErrorCode::ST_DEPTH, {.problem = fmt::format("the {} is nested too deeply", file_.part),
                                          .expected = fmt::format("at most {} levels", kMaxDepth),
                                          .got = fmt::format("one more at offset {} of the {}", i, file_.part)});
        }
        open_[depth_++] = c;
      } else if (c == '}' || c == ']') {
        if (depth_ == 0 || open_[depth_ - 1] != (c == '}' ? '{' : '[')) return;
        if (--depth_ == 0) return require_only_space(i + 1);
      }
    }
  }

 private:
  // Index of the closing quote; lone surrogates have no UTF-8 form.
  std::size_t end_of_string(std::size_t i) {
    for (; i < json_.size() && json_[i] != '"'; ++i) {
      if (json_[i] != '\\') continue;
      const int unit = unicode_escape(json_, i);
      const bool high = unit >= 0xD800 && unit <= 0xDBFF;
      const int low = high ? unicode_escape(json_, i + 6) : -1;
      const bool paired = high && low >= 0xDC00 && low <= 0xDFFF;
      if (unit >= 0xD800 && unit <= 0xDFFF && !paired) {
        at(file_.path)
            .fail(ErrorCode::ST_UTF8, {.problem = "half of a surrogate pair is no character",
                                       .expected = "valid Unicode",
                                       .got = fmt::format("\\u{:04x} at offset {} of the {}", unit, i, file_.part)});
      }
      i += unit < 0 ? 1 : paired ? 11 : 5;
    }
    return i;
  }

  void require_only_space(std::size_t i) {
    const auto next = json_.find_first_not_of(" \t\r\n", i);
    if (next == std::string_view::npos) return;
    at(file_.path)
        .fail(ErrorCode::ST_HDRPAD, {.problem = fmt::format("something follows the JSON object of the {}", file_.part),
                                     .expected = "nothing but spaces",
                                     .got = byte_at(json_, next, file_)});
  }

  std::string_view json_;
  const FileFacts& file_;
  std::array<char, kMaxDepth> open_{};
  std::size_t depth_ = 0;
};

// A second parser that knows where in the header it is: in which tensor, field and number of an array.
class Events : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Events(const FileFacts& file) : file_(file) {}

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool string(string_t&) override { return value(); }
  bool binary(binary_t&) override { return value(); }
  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override {
    index_ = 0;
    return open();
  }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (depth_ == 1) tensor_ = name;
    if (depth_ == 2) field_ = name;
    return true;
  }
  // nlohmann also calls this for an integer that does not fit.
  bool number_float(number_float_t, const string_t& text) override {
    const bool integer = text.find_first_of(".eE") == std::string::npos;
    if (integer && depth_ == 3 && field_ == "shape") {
      at(file_.path, tensor_)
          .fail(ErrorCode::ST_SHAPE, {.problem = fmt::format("dimension {} of the shape is wrong", index_),
                                      .expected = "an unsigned integer below 2^64",
                                      .got = text});
    }
    if (integer && depth_ == 3 && field_ == "data_offsets") {
      at(file_.path, tensor_)
          .fail(ErrorCode::ST_OFFSETS, {.problem = fmt::format("number {} of data_offsets is wrong", index_),
                                        .expected = "an unsigned integer below 2^64",
                                        .got = text});
    }
    if (integer)
      at(file_.path, tensor_).fail(ErrorCode::ST_HDRJSON, {.problem = "an integer does not fit 64 bits", .got = text});
    return value();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error while ..."
    const std::string text = error.what();
    const auto colon = text.find(": ");
    at(file_.path, tensor_)
        .fail(ErrorCode::ST_HDRJSON, {.problem = fmt::format("the {} is not valid JSON at offset {}", file_.part,
                                                             position == 0 ? 0 : position - 1),
                                      .got = colon == std::string::npos ? text : text.substr(colon + 2),
                                      .hint = "the download may be damaged: fetch the file again"});
  }

 private:
  bool value() {
    ++index_;
    return true;
  }
  bool open() {
    ++depth_;
    return true;
  }
  bool close() {
    --depth_;
    return value();
  }

  const FileFacts& file_;
  std::string tensor_, field_;
  std::size_t depth_ = 0, index_ = 0;
};

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

std::string_view type_name(dom::element value) {
  switch (value.type()) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::INT64:
    case dom::element_type::UINT64:
      return "an integer";
    case dom::element_type::DOUBLE:
      return "a number with a fraction or an exponent";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
  }
  return "something else";
}

void require_distinct_keys(dom::element value, std::string_view tensor, const FileFacts& file) {
  if (value.is_array()) {
    const dom::array items = value;
    for (const dom::element item : items) require_distinct_keys(item, tensor, file);
  }
  if (!value.is_object()) return;
  const dom::object fields = value;
  std::vector<std::string_view> keys;
  for (const auto [key, inner] : fields) {
    keys.push_back(key);
    require_distinct_keys(inner, tensor, file);
  }
  std::sort(keys.begin(), keys.end());  // not hashed: a file could be made whose keys collide
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return;
  at(file.path, std::string(tensor))
      .fail(ErrorCode::ST_DUP, {.problem = fmt::format("the key \"{}\" appears twice in one object", printable(*twice)),
                                .hint = "readers may see different values; export the file again"});
}

void explain_json_fault(std::string_view json, std::string_view parser_message, const FileFacts& file) {
  const std::size_t invalid = find_invalid_utf8(json);
  if (invalid != std::string_view::npos) {
    at(file.path).fail(ErrorCode::ST_UTF8, {.problem = fmt::format("the {} is not valid UTF-8", file.part),
                                            .got = byte_at(json, invalid, file)});
  }
  Scan(json, file).run();
  Events events(file);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  at(file.path).fail(ErrorCode::ST_HDRJSON, {.problem = fmt::format("the {} is not valid JSON", file.part),
                                             .got = std::string(parser_message)});
}

void refuse_negative_zero(std::string_view json, const FileFacts& file) {
  bool in_string = false;
  if (json.find("-0") == std::string_view::npos) return;
  for (std::size_t i = 0; i + 1 < json.size(); ++i) {
    if (in_string && json[i] == '\\') {
      ++i;
    } else if (json[i] == '"') {
      in_string = !in_string;
    } else if (!in_string && json[i] == '-' && json[i + 1] == '0' &&
               (i == 0 || (json[i - 1] != 'e' && json[i - 1] != 'E'))) {
      const char next = i + 2 < json.size() ? json[i + 2] : ' ';
      if (next == '.' || next == 'e' || next == 'E') continue;  // a fraction: refused where an integer must be
      at(file.path).fail(ErrorCode::ST_HDRJSON,
                         {.problem = "the number -0 is not an unsigned integer", .got = byte_at(json, i, file)});
    }
  }
}

}  // namespace peft::safetensors
