// A pattern, a zero byte, a text: every answer agrees with every other, and nothing but CF_REGEX is thrown.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "peft/config.h"
#include "peft/error.h"
#include "pythonic/python_regex.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void use(std::string_view pattern, std::string_view text) {
  const peft::PythonRegex regex(pattern);
  const auto match = regex.match(text), full = regex.fullmatch(text), found = regex.search(text);
  require(regex.matches(text) == match.has_value());
  require(regex.fullmatches(text) == full.has_value());
  require(!full || (match && full->at(0) == std::pair<std::int64_t, std::int64_t>(0, text.size())));
  require(!match || (found && match->at(0).first == 0));
  for (const auto& [name, number] : regex.names()) require(!name.empty() && number > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t split = input.find('\0');
  try {
    use(input.substr(0, split), split == input.npos ? "" : input.substr(split + 1));
  } catch (const peft::Error& error) {
    require(error.code() == peft::ErrorCode::CF_REGEX);
  }
  return 0;
}
