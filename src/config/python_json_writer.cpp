#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <vector>

#include "config/python_json.h"
#include "config/unicode.h"

namespace peft::config {
namespace {

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
    // The order of UTF-8 bytes is the order of code points.
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

}  // namespace peft::config
