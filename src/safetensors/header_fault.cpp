// Only runs on headers that have been refused: slower parsers that know where they are.
#include <fmt/core.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "safetensors/header_parts.h"
#include "safetensors/json_parser.h"

namespace peft::safetensors {
namespace {

[[noreturn]] void fail(ErrorCode code, const FileFacts& file, std::string problem, std::string expected = {},
                       std::string got = {}, std::string hint = {}, std::string tensor = {}) {
  throw Error(code, {.file = file.path,
                     .tensor = std::move(tensor),
                     .problem = std::move(problem),
                     .expected = std::move(expected),
                     .got = std::move(got),
                     .hint = std::move(hint)});
}

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

// Walks brackets and strings. Stops without a word at the first thing it does not understand.
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
          fail(ErrorCode::ST_DEPTH, file_, fmt::format("the {} is nested too deeply", file_.part),
               fmt::format("at most {} levels", kMaxDepth),
               fmt::format("one more at offset {} of the {}", i, file_.part));
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
        fail(ErrorCode::ST_UTF8, file_, "half of a surrogate pair is no character", "valid Unicode",
             fmt::format("\\u{:04x} at offset {} of the {}", unit, i, file_.part));
      }
      i += unit < 0 ? 1 : paired ? 11 : 5;
    }
    return i;
  }

  void require_only_space(std::size_t i) {
    const auto at = json_.find_first_not_of(" \t\r\n", i);
    if (at == std::string_view::npos) return;
    fail(ErrorCode::ST_HDRPAD, file_, fmt::format("something follows the JSON object of the {}", file_.part),
         "nothing but spaces", byte_at(json_, at, file_));
  }

  std::string_view json_;
  const FileFacts& file_;
  std::array<char, kMaxDepth> open_{};
  std::size_t depth_ = 0;
};

// Follows where in the header the parser is: which tensor, which field, which number of an array.
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
  // An integer that does not fit comes here, too.
  bool number_float(number_float_t, const string_t& text) override {
    const bool integer = text.find_first_of(".eE") == std::string::npos;
    if (integer && depth_ == 3 && field_ == "shape") {
      fail(ErrorCode::ST_SHAPE, file_, fmt::format("dimension {} of the shape is wrong", index_),
           "an unsigned integer below 2^64", text, {}, tensor_);
    }
    if (integer && depth_ == 3 && field_ == "data_offsets") {
      fail(ErrorCode::ST_OFFSETS, file_, fmt::format("number {} of data_offsets is wrong", index_),
           "an unsigned integer below 2^64", text, {}, tensor_);
    }
    if (integer) fail(ErrorCode::ST_HDRJSON, file_, "an integer does not fit 64 bits", {}, text, {}, tensor_);
    return value();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error while ..."
    const std::string text = error.what();
    const auto colon = text.find(": ");
    fail(ErrorCode::ST_HDRJSON, file_,
         fmt::format("the {} is not valid JSON at offset {}", file_.part, position == 0 ? 0 : position - 1), {},
         colon == std::string::npos ? text : text.substr(colon + 2),
         "the download may be damaged: fetch the file again", tensor_);
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

void explain_json_fault(std::string_view json, std::string_view parser_message, const FileFacts& file) {
  const std::size_t invalid = find_invalid_utf8(json);
  if (invalid != std::string_view::npos) {
    fail(ErrorCode::ST_UTF8, file, fmt::format("the {} is not valid UTF-8", file.part), {},
         byte_at(json, invalid, file));
  }
  Scan(json, file).run();
  Events events(file);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  fail(ErrorCode::ST_HDRJSON, file, fmt::format("the {} is not valid JSON", file.part), {},
       std::string(parser_message));
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
      fail(ErrorCode::ST_HDRJSON, file, "the number -0 is not an unsigned integer", {}, byte_at(json, i, file));
    }
  }
}

}  // namespace peft::safetensors
