#include "pythonic/python_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/text.h"
#include "pythonic/unicode.h"

namespace peft::pythonic {
namespace {

constexpr std::uint8_t kRawNumber = 1;  // subtype of the binary value that stands for a long integer

std::string place(std::string_view text, std::size_t byte) {
  byte = std::min(byte, text.size());
  const std::string_view before = text.substr(0, byte);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == before.npos ? byte + 1 : byte - newline;
  return fmt::format("byte {} (line {}, column {})", byte, line, column);
}

void check_encoding(std::string_view text, const std::string& file, ErrorCode code) {
  if (text.size() > kMaxJsonBytes) {
    at(file).fail(
        code, {.problem = fmt::format("{} bytes are more than the {} a config may have", text.size(), kMaxJsonBytes)});
  }
  const std::string hint = "save the file as UTF-8 without a byte order mark";
  if (text.starts_with("\xEF\xBB\xBF"))
    at(file).fail(code, {.problem = "starts with a byte order mark (BOM) at byte 0", .hint = hint});
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    at(file).fail(code, {.problem = "starts with a UTF-16 byte order mark (BOM) at byte 0", .hint = hint});
  }
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    at(file).fail(code, {.problem = "not valid UTF-8 at " + place(text, bad), .hint = hint});
  }
}

// Builds the value, and checks what nlohmann's parser does not check.
class Builder : public nlohmann::json_sax<Json> {
 public:
  using Code = ErrorCode (*)(std::string_view);
  Builder(std::string_view text, const std::string& file, ErrorCode code, Code code_for_number)
      : text_(text), file_(file), code_(code), code_for_number_(code_for_number) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& written) override {
    if (written.find_first_of(".eE") != std::string::npos) return add(value);
    return add(Json::binary({written.begin(), written.end()}, kRawNumber));
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return true; }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    level.key = name;
    if (!level.seen.insert(name).second)
      at(file_, path()).fail(code_, {.problem = "the key appears twice in one object"});
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token, const nlohmann::detail::exception& error) override {
    constexpr int kOverflow = 406;  // nlohmann's number for it
    if (error.id == kOverflow) refuse_number(position - token.size(), token, " is beyond double precision");
    refuse_literal(position);
    std::string reason = error.what();
    if (const std::size_t colon = reason.find(": "); colon != reason.npos) reason.erase(0, colon + 2);
    at(file_, path())
        .fail(code_, {.problem = "not JSON at " + place(text_, position == 0 ? 0 : position - 1) + ": " + reason});
  }

 private:
  struct Level {
    Json* container;
    std::string key;
    std::unordered_set<std::string> seen;
  };

  // Json's own insertion looks for the key first, which takes quadratic time for an object with many keys.
  Json* place_value(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& container = *levels_.back().container;
    if (container.is_array()) {
      auto& array = container.get_ref<Json::array_t&>();
      return &array.emplace_back(std::move(value));
    }
    auto& object = container.get_ref<Json::object_t&>();
    return &object.emplace_back(levels_.back().key, std::move(value)).second;
  }

  bool add(Json value) {
    place_value(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (levels_.size() >= kMaxJsonDepth) {
      at(file_, path()).fail(code_, {.problem = fmt::format("nested more than {} levels deep", kMaxJsonDepth)});
    }
    levels_.push_back({place_value(std::move(value)), {}, {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  // "alpha_pattern.q_proj"
  std::string path() const {
    std::string text;
    for (const Level& level : levels_) {
      if (!level.key.empty()) text += (text.empty() ? "" : ".") + level.key;
    }
    return text;
  }

  // Names a literal that Python accepts and JSON does not. `stop` is behind the character at which reading stopped.
  void refuse_literal(std::size_t stop) const {
    for (const std::string_view literal : {"-Infinity", "Infinity", "NaN"}) {
      // Reading stops at the first character, or at the second of -Infinity.
      for (const std::size_t length : {1, 2}) {
        if (stop >= length && text_.substr(stop - length).starts_with(literal)) {
          refuse_number(stop - length, std::string(literal),
                        " is no number in JSON; Python's json writes such literals");
        }
      }
    }
  }

  [[noreturn]] void refuse_number(std::size_t begin, const std::string& written, const std::string& problem) const {
    const bool chooses = code_for_number_ != nullptr && !levels_.empty();
    at(file_, path())
        .fail(chooses ? code_for_number_(levels_.front().key) : code_,
              {.problem = "what stands at " + place(text_, begin) + problem,
               .expected = "a finite number",
               .got = written});
  }

  std::string_view text_;
  const std::string& file_;
  ErrorCode code_;
  Code code_for_number_;
  Json root_;
  std::vector<Level> levels_;
};

void append_escaped(std::string& out, const std::string& text) {
  out += '"';
  for (const char32_t c : decode_utf8(text)) {
    switch (c) {
      case U'"':
        out += "\\\"";
        break;
      case U'\\':
        out += "\\\\";
        break;
      case U'\n':
        out += "\\n";
        break;
      case U'\r':
        out += "\\r";
        break;
      case U'\t':
        out += "\\t";
        break;
      case U'\f':
        out += "\\f";
        break;
      case U'\b':
        out += "\\b";
        break;
      default:
        if (c >= 0x20 && c < 0x80) {
          out += static_cast<char>(c);
        } else if (c < 0x10000) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          const auto rest = static_cast<unsigned>(c) - 0x10000;
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
        }
    }
  }
  out += '"';
}

class Writer {
 public:
  Writer(int indent, bool sort_keys) : indent_(indent), sort_keys_(sort_keys) {}

  void write(const Json& value, int depth) {
    switch (value.type()) {
      case Json::value_t::object:
        return write_object(value.get_ref<const Json::object_t&>(), depth);
      case Json::value_t::array:
        return write_array(value, depth);
      case Json::value_t::string:
        return append_escaped(out, value.get_ref<const std::string&>());
      case Json::value_t::number_float:
        out += python_float(value.get<double>());
        return;
      case Json::value_t::number_integer:
        out += std::to_string(value.get<std::int64_t>());
        return;
      case Json::value_t::number_unsigned:
        out += std::to_string(value.get<std::uint64_t>());
        return;
      case Json::value_t::boolean:
        out += value.get<bool>() ? "true" : "false";
        return;
      case Json::value_t::binary:
        out += raw_number(value);
        return;
      default:
        out += "null";
    }
  }

  std::string out;

 private:
  void new_line(int depth) {
    if (indent_ < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent_ * depth), ' ');
  }
  void separate(bool first, int depth) {
    if (!first) out += indent_ < 0 ? ", " : ",";
    new_line(depth);
  }

  void write_array(const Json& array, int depth) {
    out += '[';
    for (std::size_t i = 0; i < array.size(); ++i) {
      separate(i == 0, depth + 1);
      write(array[i], depth + 1);
    }
    if (!array.empty()) new_line(depth);
    out += ']';
  }

  void write_object(const Json::object_t& object, int depth) {
    std::vector<const Json::object_t::value_type*> entries;
    for (const auto& entry : object) entries.push_back(&entry);
    // The order of UTF-8 bytes is the order of code points, by which Python sorts.
    if (sort_keys_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    out += '{';
    for (const auto* entry : entries) {
      separate(entry == entries.front(), depth + 1);
      append_escaped(out, entry->first);
      out += ": ";
      write(entry->second, depth + 1);
    }
    if (!entries.empty()) new_line(depth);
    out += '}';
  }

  int indent_;
  bool sort_keys_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& file, ErrorCode code,
                ErrorCode (*code_for_number)(std::string_view)) {
  check_encoding(text, file, code);
  Builder builder(text, file, code, code_for_number);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string raw_number(const Json& value) {
  if (!value.is_binary() || value.get_binary().subtype() != kRawNumber) return {};
  return {value.get_binary().begin(), value.get_binary().end()};
}

std::string python_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char buffer[64];
  const auto done = std::to_chars(std::begin(buffer), std::end(buffer), value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<std::size_t>(done.ptr - buffer));
  const std::size_t e = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(text);  // 1e-05, 1.5e+16: the same form in both languages
  const auto fixed = std::to_chars(std::begin(buffer), std::end(buffer), value, std::chars_format::fixed);
  std::string result(buffer, static_cast<std::size_t>(fixed.ptr - buffer));
  if (result.find('.') == result.npos) result += ".0";
  return result;
}

std::string dump_python(const Json& value, int indent, bool sort_keys) {
  Writer writer(indent, sort_keys);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace peft::pythonic
