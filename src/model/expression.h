// The small Python-like expressions of the family table: which layers have experts, how large a dimension is.
//
//   i >= first_k_dense_replace        (i + 1) % decoder_sparse_step == 0 and i not in mlp_only_layers
//   mlp_layer_types[i] == 'sparse'    a <= i <= b        2I   E*I   I//2   (A+2*K)*D   E+zero_expert_num
//   text_config.hidden_size           len(layer_types)   ceil(hidden_size / 16)   int(hidden_size * 1.5)
//
// Evaluation never throws: an unknown name, a wrong type, an overflow or a syntax error gives nullopt ("not known").
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "model/json_file.h"

namespace peft::model {

// None, a truth value, an integer, a number with a fraction, a string, or a list of the config.
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, const Json*>;
using Lookup = std::function<std::optional<Value>(std::string_view name)>;

std::optional<Value> evaluate(std::string_view expression, const Lookup& lookup);
std::optional<std::int64_t> evaluate_integer(std::string_view expression, const Lookup& lookup);
std::optional<bool> evaluate_condition(std::string_view expression, const Lookup& lookup);

// The value of a JSON value in an expression; nullopt for objects.
std::optional<Value> to_value(const Json& json);

}  // namespace peft::model
