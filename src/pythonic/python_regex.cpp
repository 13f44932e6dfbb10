#include "pythonic/python_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "base/text.h"
#include "peft/error.h"
#include "pythonic/regex/parser.h"
#include "pythonic/regex/translate.h"
#include "pythonic/unicode.h"

namespace peft {
namespace pythonic {
namespace {

constexpr std::size_t kMaxPattern = 1 << 18;      // characters
constexpr std::uint32_t kMatchLimit = 1'000'000;  // steps of backtracking: about 2 ms
constexpr std::uint32_t kHeapLimit = 64 * 1024;   // KiB
constexpr std::uint32_t kNestLimit = 2 * kMaxRegexDepth + 100;
constexpr std::size_t kJitStack = 1 << 20;

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

PCRE2_SPTR bytes(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

std::string pcre2_message(int code) {
  std::string text(256, '\0');
  const int length = pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text.data()), text.size());
  text.resize(static_cast<std::size_t>(std::max(length, 0)));
  return text;
}

// What a thread needs for matching; patterns are shared between threads.
struct Scratch {
  Owned<pcre2_match_context> limits{pcre2_match_context_create(nullptr)};
  Owned<pcre2_jit_stack> stack{pcre2_jit_stack_create(32 * 1024, kJitStack, nullptr)};
  Owned<pcre2_match_data> span{pcre2_match_data_create(1, nullptr)};

  Scratch() {
    if (!limits || !span) throw std::bad_alloc();
    pcre2_set_match_limit(limits.get(), kMatchLimit);
    pcre2_set_heap_limit(limits.get(), kHeapLimit);
    if (stack) pcre2_jit_stack_assign(limits.get(), nullptr, stack.get());
  }
};

Scratch& scratch() {
  thread_local Scratch data;
  return data;
}

// The pattern compiled for one way of matching: PCRE2's JIT takes anchors at compile time only.
class Program {
 public:
  Program(const Pcre2Pattern& pattern, std::uint32_t anchors) {
    const Owned<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context.get(), kNestLimit);
    int error = 0;
    PCRE2_SIZE at = 0;
    constexpr std::uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_CIRCUMFLEX | PCRE2_NEVER_BACKSLASH_C;
    code_.reset(
        pcre2_compile(bytes(pattern.text), pattern.text.size(), kOptions | anchors, &error, &at, context.get()));
    if (!code_) {
      problem_ = "valid in Python, but PCRE2 cannot run it: " + pcre2_message(error);
      return;
    }
    jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
  }

  // PCRE2's result: the number of groups set, or a negative code. `text` is valid UTF-8.
  int run(std::string_view text, pcre2_match_data* data) const {
    if (!jit_) return interpret(text, data);
    const int rc = pcre2_jit_match(code_.get(), bytes(text), text.size(), 0, 0, data, scratch().limits.get());
    return rc == PCRE2_ERROR_JIT_STACKLIMIT ? interpret(text, data) : rc;
  }
  // The same without the JIT, which in 10.42 can report groups of an earlier attempt after a possessive (...)*+.
  int interpret(std::string_view text, pcre2_match_data* data) const {
    return pcre2_match(code_.get(), bytes(text), text.size(), 0, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK, data,
                       scratch().limits.get());
  }

  const pcre2_code* code() const { return code_.get(); }
  const std::string& problem() const { return problem_; }  // why there is no code

 private:
  Owned<pcre2_code> code_;
  std::string problem_;
  bool jit_ = false;
};

// Looks at eight bytes at a time, because it runs before every match.
bool is_ascii(std::string_view text) {
  constexpr std::uint64_t kHighBits = 0x8080808080808080;
  std::uint64_t seen = 0;
  for (; text.size() >= sizeof seen; text.remove_prefix(sizeof seen)) {
    std::uint64_t block;
    std::memcpy(&block, text.data(), sizeof block);
    seen |= block;
  }
  for (const char c : text) seen |= static_cast<unsigned char>(c);
  return (seen & kHighBits) == 0;
}

std::size_t length_in_characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// Python's str(re.error).
std::string error_text(const RegexError& error, const std::u32string& pattern) {
  if (!error.position) return error.message;
  const std::size_t position = *error.position;
  std::string text = error.message + " at position " + std::to_string(position);
  if (pattern.find(U'\n') == pattern.npos) return text;
  const auto before = pattern.begin() + static_cast<std::ptrdiff_t>(position);
  const auto line = std::count(pattern.begin(), before, U'\n') + 1;
  const std::size_t newline = position == 0 ? pattern.npos : pattern.rfind(U'\n', position - 1);
  const std::size_t column = newline == pattern.npos ? position + 1 : position - newline;
  return text + fmt::format(" (line {}, column {})", line, column);
}

constexpr std::size_t kMaxCached = 4 * kMaxPatterns;

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
}

// Equal, where "." of the key stands for any character.
bool equal(std::string_view key, std::string_view text) {
  return std::equal(key.begin(), key.end(), text.begin(), text.end(),
                    [](char k, char c) { return k == c || k == '.'; });
}

struct Hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace
}  // namespace pythonic

using pythonic::Program;

struct PythonRegex::Impl {
  enum Mode { kFullMatch, kMatch, kSearch };

  Impl(std::string_view pattern_text, std::string_view where_from) : pattern(pattern_text), where(where_from) {
    if (find_invalid_utf8(pattern) != std::string_view::npos) fail("the pattern is not valid UTF-8");
    const std::u32string characters = pythonic::decode_utf8(pattern);
    if (characters.size() > pythonic::kMaxPattern) {
      fail(fmt::format("the pattern has {} characters, more than {}", characters.size(), pythonic::kMaxPattern));
    }
    try {
      std::vector<pythonic::RegexWarning> seen;
      pythonic::RegexTree tree = pythonic::RegexParser(characters, &seen).parse();
      translated = pythonic::translate(tree);
      names = std::move(tree.names);
      for (pythonic::RegexWarning& warning : seen) warnings.push_back(std::move(warning.text));
      program(kMatch);  // throws now for a pattern that PCRE2 cannot run
    } catch (const pythonic::RegexError& error) {
      fail(pythonic::error_text(error, characters));
    }
  }

  [[noreturn]] void fail(const std::string& problem) const {
    at({}, where).fail(ErrorCode::CF_REGEX,
                       {.problem = problem, .expected = "a Python regular expression", .got = pattern});
  }

  const Program& program(Mode mode) const {
    constexpr std::uint32_t kAnchors[] = {PCRE2_ANCHORED | PCRE2_ENDANCHORED, PCRE2_ANCHORED, 0};
    std::call_once(compiled[mode], [&] {
      programs[mode] = std::make_unique<Program>(translated, kAnchors[mode]);
      if (!programs[mode]->problem().empty()) fail(programs[mode]->problem());
    });
    return *programs[mode];
  }

  void check_text(std::string_view text) const {
    if (!pythonic::is_ascii(text) && find_invalid_utf8(text) != std::string_view::npos)
      fail("a text to match is not valid UTF-8");
    if (translated.short_texts && pythonic::length_in_characters(text) > pythonic::kShortText) {
      fail(fmt::format("a count above {} meets a text of more than {} characters", pythonic::kShortText,
                       pythonic::kShortText));
    }
  }

  // Whether it matched. Every result of PCRE2 that is neither yes nor no is an error.
  bool decide(int rc) const {
    if (rc >= 0) return true;
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT || rc == PCRE2_ERROR_HEAPLIMIT) {
      fail(fmt::format("matching takes more than {} steps (nested repetition such as (a+)+ does that)",
                       pythonic::kMatchLimit));
    }
    fail("matching failed: " + pythonic::pcre2_message(rc));
  }

  bool matches(std::string_view text, Mode mode) const {
    check_text(text);
    return decide(program(mode).run(text, pythonic::scratch().span.get()));
  }

  std::optional<Groups> groups(std::string_view text, Mode mode) const {
    check_text(text);
    const Program& with = program(mode);
    const pythonic::Owned<pcre2_match_data> data(pcre2_match_data_create_from_pattern(with.code(), nullptr));
    if (!data) throw std::bad_alloc();
    if (!decide(with.interpret(text, data.get()))) return std::nullopt;
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data.get());
    Groups result(pcre2_get_ovector_count(data.get()), {-1, -1});
    for (std::size_t i = 0; i < result.size(); ++i) {
      if (offsets[2 * i] == PCRE2_UNSET) continue;
      result[i] = {static_cast<std::int64_t>(offsets[2 * i]), static_cast<std::int64_t>(offsets[2 * i + 1])};
    }
    return result;
  }

  std::string pattern, where;
  pythonic::Pcre2Pattern translated;
  std::vector<std::pair<std::string, int>> names;
  std::vector<std::string> warnings;
  mutable std::once_flag compiled[3];
  mutable std::unique_ptr<Program> programs[3];
};

PythonRegex::PythonRegex(std::string_view pattern, std::string_view where)
    : impl_(std::make_unique<Impl>(pattern, where)) {}
PythonRegex::~PythonRegex() = default;
PythonRegex::PythonRegex(PythonRegex&&) noexcept = default;
PythonRegex& PythonRegex::operator=(PythonRegex&&) noexcept = default;

std::optional<PythonRegex::Groups> PythonRegex::fullmatch(std::string_view text) const {
  return impl_->groups(text, Impl::kFullMatch);
}
std::optional<PythonRegex::Groups> PythonRegex::match(std::string_view text) const {
  return impl_->groups(text, Impl::kMatch);
}
std::optional<PythonRegex::Groups> PythonRegex::search(std::string_view text) const {
  return impl_->groups(text, Impl::kSearch);
}
bool PythonRegex::matches(std::string_view text) const { return impl_->matches(text, Impl::kMatch); }
bool PythonRegex::fullmatches(std::string_view text) const { return impl_->matches(text, Impl::kFullMatch); }
const std::vector<std::pair<std::string, int>>& PythonRegex::names() const { return impl_->names; }
const std::vector<std::string>& PythonRegex::warnings() const { return impl_->warnings; }

}  // namespace peft

namespace peft::pythonic {

bool is_plain_name(std::string_view key) { return std::all_of(key.begin(), key.end(), is_name_character); }

std::string suffix_expression(std::string_view key) { return "(.*\\.)?(" + std::string(key) + ")$"; }

SuffixPattern::SuffixPattern(std::string_view key) : key_(key) {
  if (!is_plain_name(key)) regex_.emplace(suffix_expression(key));
}

bool SuffixPattern::matches(std::string_view name) const {
  if (regex_) return regex_->matches(name);
  const bool ordinary = std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
  if (!ordinary) return PythonRegex(suffix_expression(key_)).matches(name);
  if (name.size() < key_.size()) return false;
  const std::size_t before = name.size() - key_.size();
  return (before == 0 || name[before - 1] == '.') && equal(key_, name.substr(before));
}

const SuffixPattern& suffix_pattern(std::string_view key) {
  thread_local std::unordered_map<std::string, SuffixPattern, Hash, std::equal_to<>> cache;
  if (const auto found = cache.find(key); found != cache.end()) return found->second;
  if (cache.size() >= kMaxCached) cache.clear();
  return cache.emplace(std::string(key), SuffixPattern(key)).first->second;
}

}  // namespace peft::pythonic
