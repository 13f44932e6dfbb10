// From Python's regular expressions to PCRE2's.
#pragma once

#include <string>

#include "pythonic/regex/tree.h"

namespace peft::pythonic {

struct Pcre2Pattern {
  std::string text;          // to be compiled with PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_CIRCUMFLEX and newline = LF
  bool short_texts = false;  // a count above PCRE2's limit was replaced: right only up to kShortText characters
};
constexpr std::size_t kShortText = 65535;

Pcre2Pattern translate(const RegexTree& tree);

}  // namespace peft::pythonic
