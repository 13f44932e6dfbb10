#include "model/path.h"

#include <algorithm>

namespace peft::model {
namespace {

constexpr std::string_view kExpertPrefix = "expert_";  // "expert_7", as switch_transformers and nllb-moe name experts

// A segment that stands where a number is expected: digits, possibly with a sign in front.
bool looks_like_number(std::string_view segment) {
  return all_digits(segment) ||
         (segment.size() > 1 && (segment[0] == '-' || segment[0] == '+') && all_digits(segment.substr(1)));
}

PathNumber read_number(std::string_view digits) {
  constexpr std::size_t kMaxDigits = 18;
  if (!all_digits(digits) || digits.size() > kMaxDigits || (digits.size() > 1 && digits[0] == '0')) return {0, false};
  std::int64_t value = 0;
  for (const char c : digits) value = value * 10 + (c - '0');
  return {value, true};
}

// Calls visit(what the key keeps, the number, whether it is the last segment). The number is "" for segments without
// one; for others the key keeps the prefix before the number.
template <class Visit>
void for_each_segment(std::string_view path, Visit visit) {
  for (std::size_t start = 0; start <= path.size();) {
    const std::size_t end = std::min(path.find('.', start), path.size());
    const std::string_view segment = path.substr(start, end - start);
    const bool prefixed = segment.starts_with(kExpertPrefix);
    const std::string_view tail = prefixed ? segment.substr(kExpertPrefix.size()) : segment;
    if (looks_like_number(tail) || tail == "{layer}" || tail == "{expert}") {
      visit(prefixed ? kExpertPrefix : std::string_view(), tail, end == path.size());
    } else {
      visit(segment, std::string_view(), end == path.size());
    }
    start = end + 1;
  }
}

}  // namespace

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

PathKey path_key(std::string_view path) {
  PathKey result;
  result.key.reserve(path.size());
  for_each_segment(path, [&](std::string_view text, std::string_view number, bool last) {
    result.key += text;
    if (!number.empty()) {
      result.key += '#';
      result.numbers.push_back(read_number(number));
    }
    if (!last) result.key += '.';
  });
  return result;
}

PathTemplate::PathTemplate(std::string_view text) : text_(text) {
  int slot = 0;
  for_each_segment(text, [&](std::string_view fixed, std::string_view number, bool last) {
    key_ += fixed;
    if (!number.empty()) {
      key_ += '#';
      if (number == "{layer}") {
        layer_slot_ = slot;
      } else if (number == "{expert}") {
        expert_slot_ = slot;
      } else {
        literals_.emplace_back(slot, read_number(number).value);
      }
      ++slot;
    }
    if (!last) key_ += '.';
  });
}

std::optional<PathTemplate::Match> PathTemplate::match(const std::vector<PathNumber>& numbers) const {
  for (const auto& [slot, value] : literals_) {
    const PathNumber& number = numbers[static_cast<std::size_t>(slot)];
    if (!number.plain || number.value != value) return std::nullopt;
  }
  Match result;
  if (layer_slot_ >= 0) result.layer = numbers[static_cast<std::size_t>(layer_slot_)];
  if (expert_slot_ >= 0) result.expert = numbers[static_cast<std::size_t>(expert_slot_)];
  return result;
}

std::string PathTemplate::fill(std::int64_t layer, std::int64_t expert) const {
  return replace_all(replace_all(text_, "{layer}", std::to_string(layer)), "{expert}", std::to_string(expert));
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string_view parent(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
}

std::string_view leaf(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? path : path.substr(dot + 1);
}

std::string up_to_layer(std::string_view path) {
  constexpr std::string_view kLayer = "{layer}";
  const std::size_t at = path.find(kLayer);
  return std::string(at == std::string_view::npos ? path : path.substr(0, at + kLayer.size()));
}

std::string without_numbers(std::string_view path) {
  std::string result;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (begin != 0) result += '.';
    result += all_digits(part) ? "*" : part;
    begin = end + 1;
  }
  return result;
}

bool is_below(std::string_view path, std::string_view ancestor) {
  return path.size() > ancestor.size() && path.starts_with(ancestor) && path[ancestor.size()] == '.';
}

bool is_embedding_name(std::string_view module) {
  const std::string_view name = leaf(module);
  if (name == "embed_out") return false;  // the output of gpt_neox
  return name == "wte" || name == "wpe" || name == "shared" || name.starts_with("embed") || name.ends_with("embed") ||
         name.ends_with("embeddings") || name.ends_with("embedding");
}

bool is_token_embedding_name(std::string_view module) {
  const std::string_view name = leaf(module);
  const bool text = module.find("visual") == std::string_view::npos &&
                    module.find("vision") == std::string_view::npos && module.find("audio") == std::string_view::npos;
  return text && is_embedding_name(module) && name != "wpe" && name.find("pos") == std::string_view::npos &&
         name.find("type") == std::string_view::npos;
}

bool is_norm_name(std::string_view module) {
  const std::string_view name = leaf(module);
  return name.find("norm") != std::string_view::npos || name.starts_with("ln_") || name == "ln";
}

bool is_output_name(std::string_view module) {
  const std::string_view name = leaf(module);
  return name == "lm_head" || name == "embed_out";
}

}  // namespace peft::model
