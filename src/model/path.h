// Paths of modules: their parts, what a last part says of its module, and paths with their numbers set apart. The last
// serve to find by one hash lookup the template that a path was made from:
//
//   "model.layers.3.mlp.experts.17.w1"                     key "model.layers.#.mlp.experts.#.w1", numbers 3, 17
//   "model.layers.{layer}.mlp.experts.{expert}.w1"         the same key, slots layer, expert
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft::model {

bool all_digits(std::string_view text);  // and not empty

struct PathNumber {
  std::int64_t value = 0;
  bool plain = true;  // false: "01", "-1", or too long for a number
};

struct PathKey {
  std::string key;
  std::vector<PathNumber> numbers;
};
PathKey path_key(std::string_view path);

// A path with {layer} and {expert} in it. A literal number ("layer.2") must be equal to match.
class PathTemplate {
 public:
  explicit PathTemplate(std::string_view text);
  const std::string& text() const { return text_; }
  const std::string& key() const { return key_; }
  bool has_layer() const { return layer_slot_ >= 0; }
  bool has_expert() const { return expert_slot_ >= 0; }

  struct Match {
    PathNumber layer, expert;  // {0, true} where the template has no such slot
  };
  // The numbers of a path with this key; nullopt when a literal number differs.
  std::optional<Match> match(const std::vector<PathNumber>& numbers) const;
  std::string fill(std::int64_t layer, std::int64_t expert = 0) const;

 private:
  std::string text_, key_;
  int layer_slot_ = -1, expert_slot_ = -1;
  std::vector<std::pair<int, std::int64_t>> literals_;
};

std::string replace_all(std::string text, std::string_view from, std::string_view to);

// ---- Parts of a path

// "a.b.c" -> "a.b"; "" when there is no dot.
std::string_view parent(std::string_view path);
// "a.b.c" -> "c".
std::string_view leaf(std::string_view path);
// "model.layers.{layer}.mlp" -> "model.layers.{layer}". A path without a layer stays as it is.
std::string up_to_layer(std::string_view path);
// "model.layers.3.mlp.experts.17" -> "model.layers.*.mlp.experts.*".
std::string without_numbers(std::string_view path);
bool is_below(std::string_view path, std::string_view ancestor);  // "a.b.c" is below "a.b" and "a"

// ---- What the name of a module says

bool is_embedding_name(std::string_view module);        // embed_tokens, wte, word_embeddings
bool is_token_embedding_name(std::string_view module);  // an embedding of text: not of positions, not of images
bool is_norm_name(std::string_view module);             // input_layernorm, q_norm, ln_1: its weight is a vector
bool is_output_name(std::string_view module);           // lm_head, embed_out

}  // namespace peft::model
