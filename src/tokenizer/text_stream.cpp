#include "tokenizer/tokenizer.h"

namespace peft {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD: what bytes that are no whole character decode to

// Bytes of `text` without the replacement characters at its end: the next token may complete them.
std::size_t complete_part(std::string_view text) {
  while (text.ends_with(kReplacement)) text.remove_suffix(kReplacement.size());
  return text.size();
}

}  // namespace

// The whole list is decoded each time: decoders look at neighbours (spaces at the start, runs of bytes). Where a token
// changes text before it, which only broken UTF-8 does, what is printed stays and the rest follows.
std::string TextStream::rest_after(std::size_t end) {
  if (end <= printed_) return {};
  std::string rest = text_.substr(printed_, end - printed_);
  printed_ = end;
  return rest;
}

std::string TextStream::add(std::int64_t id) {
  ids_.push_back(id);
  std::string text = tokenizer_.decode(ids_, true);
  const bool continues = text.compare(0, printed_, text_, 0, printed_) == 0;
  text_ = std::move(text);
  return continues ? rest_after(complete_part(text_)) : std::string();
}

std::string TextStream::finish() { return rest_after(text_.size()); }

}  // namespace peft
