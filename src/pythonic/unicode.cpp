#include "pythonic/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/text.h"

namespace peft::pythonic {
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
    // {code point, name}: ASCII, Latin-1 and general punctuation, from the Unicode Character Database 14.0 (python3.11
    // unicodedata).
    {0x0020, "SPACE"},
    {0x0021, "EXCLAMATION MARK"},
    {0x0022, "QUOTATION MARK"},
    {0x0023, "NUMBER SIGN"},
    {0x0024, "DOLLAR SIGN"},
    {0x0025, "PERCENT SIGN"},
    {0x0026, "AMPERSAND"},
    {0x0027, "APOSTROPHE"},
    {0x0028, "LEFT PARENTHESIS"},
    {0x0029, "RIGHT PARENTHESIS"},
    {0x002A, "ASTERISK"},
    {0x002B, "PLUS SIGN"},
    {0x002C, "COMMA"},
    {0x002D, "HYPHEN-MINUS"},
    {0x002E, "FULL STOP"},
    {0x002F, "SOLIDUS"},
    {0x0030, "DIGIT ZERO"},
    {0x0031, "DIGIT ONE"},
    {0x0032, "DIGIT TWO"},
    {0x0033, "DIGIT THREE"},
    {0x0034, "DIGIT FOUR"},
    {0x0035, "DIGIT FIVE"},
    {0x0036, "DIGIT SIX"},
    {0x0037, "DIGIT SEVEN"},
    {0x0038, "DIGIT EIGHT"},
    {0x0039, "DIGIT NINE"},
    {0x003A, "COLON"},
    {0x003B, "SEMICOLON"},
    {0x003C, "LESS-THAN SIGN"},
    {0x003D, "EQUALS SIGN"},
    {0x003E, "GREATER-THAN SIGN"},
    {0x003F, "QUESTION MARK"},
    {0x0040, "COMMERCIAL AT"},
    {0x0041, "LATIN CAPITAL LETTER A"},
    {0x0042, "LATIN CAPITAL LETTER B"},
    {0x0043, "LATIN CAPITAL LETTER C"},
    {0x0044, "LATIN CAPITAL LETTER D"},
    {0x0045, "LATIN CAPITAL LETTER E"},
    {0x0046, "LATIN CAPITAL LETTER F"},
    {0x0047, "LATIN CAPITAL LETTER G"},
    {0x0048, "LATIN CAPITAL LETTER H"},
    {0x0049, "LATIN CAPITAL LETTER I"},
    {0x004A, "LATIN CAPITAL LETTER J"},
    {0x004B, "LATIN CAPITAL LETTER K"},
    {0x004C, "LATIN CAPITAL LETTER L"},
    {0x004D, "LATIN CAPITAL LETTER M"},
    {0x004E, "LATIN CAPITAL LETTER N"},
    {0x004F, "LATIN CAPITAL LETTER O"},
    {0x0050, "LATIN CAPITAL LETTER P"},
    {0x0051, "LATIN CAPITAL LETTER Q"},
    {0x0052, "LATIN CAPITAL LETTER R"},
    {0x0053, "LATIN CAPITAL LETTER S"},
    {0x0054, "LATIN CAPITAL LETTER T"},
    {0x0055, "LATIN CAPITAL LETTER U"},
    {0x0056, "LATIN CAPITAL LETTER V"},
    {0x0057, "LATIN CAPITAL LETTER W"},
    {0x0058, "LATIN CAPITAL LETTER X"},
    {0x0059, "LATIN CAPITAL LETTER Y"},
    {0x005A, "LATIN CAPITAL LETTER Z"},
    {0x005B, "LEFT SQUARE BRACKET"},
    {0x005C, "REVERSE SOLIDUS"},
    {0x005D, "RIGHT SQUARE BRACKET"},
    {0x005E, "CIRCUMFLEX ACCENT"},
    {0x005F, "LOW LINE"},
    {0x0060, "GRAVE ACCENT"},
    {0x0061, "LATIN SMALL LETTER A"},
    {0x0062, "LATIN SMALL LETTER B"},
    {0x0063, "LATIN SMALL LETTER C"},
    {0x0064, "LATIN SMALL LETTER D"},
    {0x0065, "LATIN SMALL LETTER E"},
    {0x0066, "LATIN SMALL LETTER F"},
    {0x0067, "LATIN SMALL LETTER G"},
    {0x0068, "LATIN SMALL LETTER H"},
    {0x0069, "LATIN SMALL LETTER I"},
    {0x006A, "LATIN SMALL LETTER J"},
    {0x006B, "LATIN SMALL LETTER K"},
    {0x006C, "LATIN SMALL LETTER L"},
    {0x006D, "LATIN SMALL LETTER M"},
    {0x006E, "LATIN SMALL LETTER N"},
    {0x006F, "LATIN SMALL LETTER O"},
    {0x0070, "LATIN SMALL LETTER P"},
    {0x0071, "LATIN SMALL LETTER Q"},
    {0x0072, "LATIN SMALL LETTER R"},
    {0x0073, "LATIN SMALL LETTER S"},
    {0x0074, "LATIN SMALL LETTER T"},
    {0x0075, "LATIN SMALL LETTER U"},
    {0x0076, "LATIN SMALL LETTER V"},
    {0x0077, "LATIN SMALL LETTER W"},
    {0x0078, "LATIN SMALL LETTER X"},
    {0x0079, "LATIN SMALL LETTER Y"},
    {0x007A, "LATIN SMALL LETTER Z"},
    {0x007B, "LEFT CURLY BRACKET"},
    {0x007C, "VERTICAL LINE"},
    {0x007D, "RIGHT CURLY BRACKET"},
    {0x007E, "TILDE"},
    {0x00A0, "NO-BREAK SPACE"},
    {0x00A1, "INVERTED EXCLAMATION MARK"},
    {0x00A2, "CENT SIGN"},
    {0x00A3, "POUND SIGN"},
    {0x00A4, "CURRENCY SIGN"},
    {0x00A5, "YEN SIGN"},
    {0x00A6, "BROKEN BAR"},
    {0x00A7, "SECTION SIGN"},
    {0x00A8, "DIAERESIS"},
    {0x00A9, "COPYRIGHT SIGN"},
    {0x00AA, "FEMININE ORDINAL INDICATOR"},
    {0x00AB, "LEFT-POINTING DOUBLE ANGLE QUOTATION MARK"},
    {0x00AC, "NOT SIGN"},
    {0x00AD, "SOFT HYPHEN"},
    {0x00AE, "REGISTERED SIGN"},
    {0x00AF, "MACRON"},
    {0x00B0, "DEGREE SIGN"},
    {0x00B1, "PLUS-MINUS SIGN"},
    {0x00B2, "SUPERSCRIPT TWO"},
    {0x00B3, "SUPERSCRIPT THREE"},
    {0x00B4, "ACUTE ACCENT"},
    {0x00B5, "MICRO SIGN"},
    {0x00B6, "PILCROW SIGN"},
    {0x00B7, "MIDDLE DOT"},
    {0x00B8, "CEDILLA"},
    {0x00B9, "SUPERSCRIPT ONE"},
    {0x00BA, "MASCULINE ORDINAL INDICATOR"},
    {0x00BB, "RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK"},
    {0x00BC, "VULGAR FRACTION ONE QUARTER"},
    {0x00BD, "VULGAR FRACTION ONE HALF"},
    {0x00BE, "VULGAR FRACTION THREE QUARTERS"},
    {0x00BF, "INVERTED QUESTION MARK"},
    {0x00C0, "LATIN CAPITAL LETTER A WITH GRAVE"},
    {0x00C1, "LATIN CAPITAL LETTER A WITH ACUTE"},
    {0x00C2, "LATIN CAPITAL LETTER A WITH CIRCUMFLEX"},
    {0x00C3, "LATIN CAPITAL LETTER A WITH TILDE"},
    {0x00C4, "LATIN CAPITAL LETTER A WITH DIAERESIS"},
    {0x00C5, "LATIN CAPITAL LETTER A WITH RING ABOVE"},
    {0x00C6, "LATIN CAPITAL LETTER AE"},
    {0x00C7, "LATIN CAPITAL LETTER C WITH CEDILLA"},
    {0x00C8, "LATIN CAPITAL LETTER E WITH GRAVE"},
    {0x00C9, "LATIN CAPITAL LETTER E WITH ACUTE"},
    {0x00CA, "LATIN CAPITAL LETTER E WITH CIRCUMFLEX"},
    {0x00CB, "LATIN CAPITAL LETTER E WITH DIAERESIS"},
    {0x00CC, "LATIN CAPITAL LETTER I WITH GRAVE"},
    {0x00CD, "LATIN CAPITAL LETTER I WITH ACUTE"},
    {0x00CE, "LATIN CAPITAL LETTER I WITH CIRCUMFLEX"},
    {0x00CF, "LATIN CAPITAL LETTER I WITH DIAERESIS"},
    {0x00D0, "LATIN CAPITAL LETTER ETH"},
    {0x00D1, "LATIN CAPITAL LETTER N WITH TILDE"},
    {0x00D2, "LATIN CAPITAL LETTER O WITH GRAVE"},
    {0x00D3, "LATIN CAPITAL LETTER O WITH ACUTE"},
    {0x00D4, "LATIN CAPITAL LETTER O WITH CIRCUMFLEX"},
    {0x00D5, "LATIN CAPITAL LETTER O WITH TILDE"},
    {0x00D6, "LATIN CAPITAL LETTER O WITH DIAERESIS"},
    {0x00D7, "MULTIPLICATION SIGN"},
    {0x00D8, "LATIN CAPITAL LETTER O WITH STROKE"},
    {0x00D9, "LATIN CAPITAL LETTER U WITH GRAVE"},
    {0x00DA, "LATIN CAPITAL LETTER U WITH ACUTE"},
    {0x00DB, "LATIN CAPITAL LETTER U WITH CIRCUMFLEX"},
    {0x00DC, "LATIN CAPITAL LETTER U WITH DIAERESIS"},
    {0x00DD, "LATIN CAPITAL LETTER Y WITH ACUTE"},
    {0x00DE, "LATIN CAPITAL LETTER THORN"},
    {0x00DF, "LATIN SMALL LETTER SHARP S"},
    {0x00E0, "LATIN SMALL LETTER A WITH GRAVE"},
    {0x00E1, "LATIN SMALL LETTER A WITH ACUTE"},
    {0x00E2, "LATIN SMALL LETTER A WITH CIRCUMFLEX"},
    {0x00E3, "LATIN SMALL LETTER A WITH TILDE"},
    {0x00E4, "LATIN SMALL LETTER A WITH DIAERESIS"},
    {0x00E5, "LATIN SMALL LETTER A WITH RING ABOVE"},
    {0x00E6, "LATIN SMALL LETTER AE"},
    {0x00E7, "LATIN SMALL LETTER C WITH CEDILLA"},
    {0x00E8, "LATIN SMALL LETTER E WITH GRAVE"},
    {0x00E9, "LATIN SMALL LETTER E WITH ACUTE"},
    {0x00EA, "LATIN SMALL LETTER E WITH CIRCUMFLEX"},
    {0x00EB, "LATIN SMALL LETTER E WITH DIAERESIS"},
    {0x00EC, "LATIN SMALL LETTER I WITH GRAVE"},
    {0x00ED, "LATIN SMALL LETTER I WITH ACUTE"},
    {0x00EE, "LATIN SMALL LETTER I WITH CIRCUMFLEX"},
    {0x00EF, "LATIN SMALL LETTER I WITH DIAERESIS"},
    {0x00F0, "LATIN SMALL LETTER ETH"},
    {0x00F1, "LATIN SMALL LETTER N WITH TILDE"},
    {0x00F2, "LATIN SMALL LETTER O WITH GRAVE"},
    {0x00F3, "LATIN SMALL LETTER O WITH ACUTE"},
    {0x00F4, "LATIN SMALL LETTER O WITH CIRCUMFLEX"},
    {0x00F5, "LATIN SMALL LETTER O WITH TILDE"},
    {0x00F6, "LATIN SMALL LETTER O WITH DIAERESIS"},
    {0x00F7, "DIVISION SIGN"},
    {0x00F8, "LATIN SMALL LETTER O WITH STROKE"},
    {0x00F9, "LATIN SMALL LETTER U WITH GRAVE"},
    {0x00FA, "LATIN SMALL LETTER U WITH ACUTE"},
    {0x00FB, "LATIN SMALL LETTER U WITH CIRCUMFLEX"},
    {0x00FC, "LATIN SMALL LETTER U WITH DIAERESIS"},
    {0x00FD, "LATIN SMALL LETTER Y WITH ACUTE"},
    {0x00FE, "LATIN SMALL LETTER THORN"},
    {0x00FF, "LATIN SMALL LETTER Y WITH DIAERESIS"},
    {0x2010, "HYPHEN"},
    {0x2011, "NON-BREAKING HYPHEN"},
    {0x2012, "FIGURE DASH"},
    {0x2013, "EN DASH"},
    {0x2014, "EM DASH"},
    {0x2015, "HORIZONTAL BAR"},
    {0x2016, "DOUBLE VERTICAL LINE"},
    {0x2017, "DOUBLE LOW LINE"},
    {0x2018, "LEFT SINGLE QUOTATION MARK"},
    {0x2019, "RIGHT SINGLE QUOTATION MARK"},
    {0x201A, "SINGLE LOW-9 QUOTATION MARK"},
    {0x201B, "SINGLE HIGH-REVERSED-9 QUOTATION MARK"},
    {0x201C, "LEFT DOUBLE QUOTATION MARK"},
    {0x201D, "RIGHT DOUBLE QUOTATION MARK"},
    {0x201E, "DOUBLE LOW-9 QUOTATION MARK"},
    {0x201F, "DOUBLE HIGH-REVERSED-9 QUOTATION MARK"},
    {0x2020, "DAGGER"},
    {0x2021, "DOUBLE DAGGER"},
    {0x2022, "BULLET"},
    {0x2023, "TRIANGULAR BULLET"},
    {0x2024, "ONE DOT LEADER"},
    {0x2025, "TWO DOT LEADER"},
    {0x2026, "HORIZONTAL ELLIPSIS"},
    {0x2027, "HYPHENATION POINT"},
    {0x2028, "LINE SEPARATOR"},
    {0x2029, "PARAGRAPH SEPARATOR"},
    {0x202A, "LEFT-TO-RIGHT EMBEDDING"},
    {0x202B, "RIGHT-TO-LEFT EMBEDDING"},
    {0x202C, "POP DIRECTIONAL FORMATTING"},
    {0x202D, "LEFT-TO-RIGHT OVERRIDE"},
    {0x202E, "RIGHT-TO-LEFT OVERRIDE"},
    {0x202F, "NARROW NO-BREAK SPACE"},
    {0x2030, "PER MILLE SIGN"},
    {0x2031, "PER TEN THOUSAND SIGN"},
    {0x2032, "PRIME"},
    {0x2033, "DOUBLE PRIME"},
    {0x2034, "TRIPLE PRIME"},
    {0x2035, "REVERSED PRIME"},
    {0x2036, "REVERSED DOUBLE PRIME"},
    {0x2037, "REVERSED TRIPLE PRIME"},
    {0x2038, "CARET"},
    {0x2039, "SINGLE LEFT-POINTING ANGLE QUOTATION MARK"},
    {0x203A, "SINGLE RIGHT-POINTING ANGLE QUOTATION MARK"},
    {0x203B, "REFERENCE MARK"},
    {0x203C, "DOUBLE EXCLAMATION MARK"},
    {0x203D, "INTERROBANG"},
    {0x203E, "OVERLINE"},
    {0x203F, "UNDERTIE"},
    {0x2040, "CHARACTER TIE"},
    {0x2041, "CARET INSERTION POINT"},
    {0x2042, "ASTERISM"},
    {0x2043, "HYPHEN BULLET"},
    {0x2044, "FRACTION SLASH"},
    {0x2045, "LEFT SQUARE BRACKET WITH QUILL"},
    {0x2046, "RIGHT SQUARE BRACKET WITH QUILL"},
    {0x2047, "DOUBLE QUESTION MARK"},
    {0x2048, "QUESTION EXCLAMATION MARK"},
    {0x2049, "EXCLAMATION QUESTION MARK"},
    {0x204A, "TIRONIAN SIGN ET"},
    {0x204B, "REVERSED PILCROW SIGN"},
    {0x204C, "BLACK LEFTWARDS BULLET"},
    {0x204D, "BLACK RIGHTWARDS BULLET"},
    {0x204E, "LOW ASTERISK"},
    {0x204F, "REVERSED SEMICOLON"},
    {0x2050, "CLOSE UP"},
    {0x2051, "TWO ASTERISKS ALIGNED VERTICALLY"},
    {0x2052, "COMMERCIAL MINUS SIGN"},
    {0x2053, "SWUNG DASH"},
    {0x2054, "INVERTED UNDERTIE"},
    {0x2055, "FLOWER PUNCTUATION MARK"},
    {0x2056, "THREE DOT PUNCTUATION"},
    {0x2057, "QUADRUPLE PRIME"},
    {0x2058, "FOUR DOT PUNCTUATION"},
    {0x2059, "FIVE DOT PUNCTUATION"},
    {0x205A, "TWO DOT PUNCTUATION"},
    {0x205B, "FOUR DOT MARK"},
    {0x205C, "DOTTED CROSS"},
    {0x205D, "TRICOLON"},
    {0x205E, "VERTICAL FOUR DOTS"},
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

}  // namespace peft::pythonic
