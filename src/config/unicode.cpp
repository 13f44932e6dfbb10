#include "config/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/text.h"

namespace peft::config {
namespace {

// A class of characters by Unicode properties; PCRE2 has the tables.
class Property {
 public:
  explicit Property(std::string_view one_character_pattern) {
    int error = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(one_character_pattern.data()), one_character_pattern.size(),
                              PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &at, nullptr));
  }

  bool has(char32_t c) const {
    if (!code_ || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return false;
    std::string text;
    append_utf8(text, c);
    const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create(1, nullptr));
    return data && pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, data.get(),
                               nullptr) >= 0;
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

struct NamedCharacter {
  std::uint16_t code_point;
  std::string_view name;
};

constexpr NamedCharacter kNames[] = {
#include "config/character_names.inc"
};

}  // namespace

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    out.push_back(step.code_point);
    text.remove_prefix(std::max<std::size_t>(step.length, 1));
  }
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

bool is_identifier_start(char32_t c) {
  static const Property property("[_\\p{XIDS}]");
  return property.has(c);
}

bool is_identifier_part(char32_t c) {
  static const Property property("\\p{XIDC}");
  return property.has(c);
}

bool is_printable(char32_t c) {
  static const Property property("[^\\p{C}\\p{Z}]");
  return c == U' ' || property.has(c);
}

bool is_alphabetic(char32_t c) {
  static const Property property("\\p{L}");
  return property.has(c);
}

std::string python_repr(std::u32string_view text) {
  const bool double_quotes = text.find(U'\'') != text.npos && text.find(U'"') == text.npos;
  const char32_t quote = double_quotes ? U'"' : U'\'';
  std::string out(1, static_cast<char>(quote));
  for (const char32_t c : text) {
    if (c == quote || c == U'\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == U'\n') {
      out += "\\n";
    } else if (c == U'\r') {
      out += "\\r";
    } else if (c == U'\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<unsigned>(c));
    }
  }
  out += static_cast<char>(quote);
  return out;
}

char32_t character_named(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  const auto* found =
      std::find_if(std::begin(kNames), std::end(kNames), [&](const NamedCharacter& row) { return row.name == upper; });
  return found == std::end(kNames) ? U'\0' : static_cast<char32_t>(found->code_point);
}

}  // namespace peft::config
