// What JSON and regular expressions need to know of Unicode.
#pragma once

#include <string>
#include <string_view>

namespace peft::pythonic {

// `text` must be valid UTF-8.
std::u32string decode_utf8(std::string_view text);
void append_utf8(std::string& out, char32_t code_point);
std::string encode_utf8(std::u32string_view text);

// As str.isidentifier, str.isprintable and str.isalpha see one character.
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);
bool is_printable(char32_t c);
bool is_alphabetic(char32_t c);

// repr() of a Python string: quotes, escapes.
std::string python_repr(std::u32string_view text);

// The character of a Unicode name ("EM DASH", any case) for \N{...}: Latin-1 and general punctuation; 0 when unknown.
char32_t character_named(std::string_view name);

}  // namespace peft::pythonic
