#include "model/expression.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <vector>

namespace peft::model {
namespace {

constexpr int kMaxDepth = 32;

using Result = std::optional<Value>;

std::optional<std::int64_t> integer_of(const Result& value) {
  if (!value) return std::nullopt;
  if (const auto* number = std::get_if<std::int64_t>(&*value)) return *number;
  return std::nullopt;
}

// Python's rounding: towards minus infinity.
std::optional<std::int64_t> floor_divide(std::int64_t a, std::int64_t b) {
  if (b == 0 || (a == std::numeric_limits<std::int64_t>::min() && b == -1)) return std::nullopt;
  const std::int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

std::optional<std::int64_t> calculate(std::string_view op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (op == "+") return __builtin_add_overflow(a, b, &result) ? std::nullopt : std::optional(result);
  if (op == "-") return __builtin_sub_overflow(a, b, &result) ? std::nullopt : std::optional(result);
  if (op == "*") return __builtin_mul_overflow(a, b, &result) ? std::nullopt : std::optional(result);
  const auto quotient = floor_divide(a, b);
  if (op == "//" || !quotient) return quotient;
  return a - *quotient * b;  // %
}

std::optional<double> real_of(const Result& value) {
  if (!value) return std::nullopt;
  if (const auto* number = std::get_if<double>(&*value)) return *number;
  const auto integer = integer_of(value);
  return integer ? std::optional(static_cast<double>(*integer)) : std::nullopt;
}

Result calculate_real(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (b == 0) return std::nullopt;
  if (op == "/") return Value(a / b);
  return op == "//" ? Result(std::floor(a / b)) : std::nullopt;
}

Result to_integer(double value) {
  constexpr double kLimit = 9e15;  // larger whole numbers are not exact
  return std::abs(value) < kLimit ? Result(static_cast<std::int64_t>(value)) : std::nullopt;
}

constexpr std::string_view kFunctions[] = {"int", "ceil", "round", "len", "max", "min"};

Result call(std::string_view function, const std::vector<Result>& arguments) {
  if (function == "len") {
    const auto* list = arguments[0] ? std::get_if<const Json*>(&*arguments[0]) : nullptr;
    const auto* text = arguments[0] ? std::get_if<std::string>(&*arguments[0]) : nullptr;
    if (text != nullptr) return Value(static_cast<std::int64_t>(text->size()));
    return list != nullptr ? Result(static_cast<std::int64_t>((*list)->size())) : std::nullopt;
  }
  if (function == "max" || function == "min") {
    std::optional<std::int64_t> best;
    for (const Result& argument : arguments) {
      const auto number = integer_of(argument);
      if (!number) return std::nullopt;
      best = !best ? *number : function == "max" ? std::max(*best, *number) : std::min(*best, *number);
    }
    return best ? Result(*best) : std::nullopt;
  }
  const auto number = real_of(arguments[0]);
  if (!number) return std::nullopt;
  if (const auto integer = integer_of(arguments[0])) return Value(*integer);
  if (function == "int") return to_integer(std::trunc(*number));
  return to_integer(function == "ceil" ? std::ceil(*number) : std::nearbyint(*number));
}

std::optional<bool> contains(const Value& list, const Value& item) {
  const auto* json = std::get_if<const Json*>(&list);
  if (json == nullptr) return std::nullopt;
  for (const Json& element : **json) {
    if (to_value(element) == item) return true;
  }
  return false;
}

std::optional<bool> compare(std::string_view op, const Value& a, const Value& b) {
  if (op == "in") return contains(b, a);
  if (op == "not in") {
    const auto found = contains(b, a);
    return found ? std::optional(!*found) : std::nullopt;
  }
  if (op == "==") return a == b;
  if (op == "!=") return a != b;
  const auto* left = std::get_if<std::int64_t>(&a);
  const auto* right = std::get_if<std::int64_t>(&b);
  if (left == nullptr || right == nullptr) return std::nullopt;
  if (op == "<") return *left < *right;
  if (op == "<=") return *left <= *right;
  if (op == ">") return *left > *right;
  return *left >= *right;
}

// Recursive descent: a method reads one level of precedence and evaluates it at once.
class Evaluator {
 public:
  Evaluator(std::string_view text, const Lookup& lookup) : text_(text), lookup_(lookup) {}

  Result run() {
    Result value = conjunction();
    skip_space();
    if (position_ != text_.size()) failed_ = true;
    return failed_ ? std::nullopt : value;
  }

 private:
  Result conjunction() {
    if (++depth_ > kMaxDepth) failed_ = true;
    if (failed_) return std::nullopt;
    Result value = negation();
    while (take_word("and")) {
      const Result right = negation();
      const bool* a = value ? std::get_if<bool>(&*value) : nullptr;
      const bool* b = right ? std::get_if<bool>(&*right) : nullptr;
      value = (a && b) ? Result(*a && *b) : std::nullopt;
    }
    --depth_;
    return value;
  }

  Result negation() {
    if (!take_word("not")) return comparison();
    const Result value = comparison();
    const bool* truth = value ? std::get_if<bool>(&*value) : nullptr;
    return truth != nullptr ? Result(!*truth) : std::nullopt;
  }

  Result comparison() {
    Result left = sum();
    std::string_view op = take_comparison();
    if (op.empty()) return left;
    std::optional<bool> all = true;
    for (; !op.empty(); op = take_comparison()) {
      const Result right = sum();
      const auto holds = left && right ? compare(op, *left, *right) : std::nullopt;
      all = all && holds ? std::optional(*all && *holds) : std::nullopt;
      left = right;
    }
    return all ? Result(*all) : std::nullopt;
  }

  Result sum() {
    Result value = product();
    while (true) {
      const std::string_view op = take("+") ? "+" : take("-") ? "-" : "";
      if (op.empty()) return value;
      value = apply(op, value, product());
    }
  }

  Result product() {
    Result value = factor();
    while (true) {
      const std::string_view op = take("*") ? "*" : take("//") ? "//" : take("/") ? "/" : take("%") ? "%" : "";
      if (op.empty()) return value;
      value = apply(op, value, factor());
    }
  }

  Result apply(std::string_view op, const Result& a, const Result& b) {
    const auto left = integer_of(a), right = integer_of(b);
    if (!left || !right || op == "/") {
      const auto x = real_of(a), y = real_of(b);
      return x && y ? calculate_real(op, *x, *y) : std::nullopt;
    }
    const auto result = calculate(op, *left, *right);
    return result ? Result(*result) : std::nullopt;
  }

  Result factor() {
    skip_space();
    if (position_ >= text_.size()) return fail();
    const char c = text_[position_];
    if (take("(")) {
      Result value = conjunction();
      if (!take(")")) return fail();
      return value;
    }
    if (c == '\'') return quoted();
    if (std::isdigit(static_cast<unsigned char>(c))) return number();
    const std::string_view word = take_identifier();
    if (word.empty()) return fail();
    if (std::find(std::begin(kFunctions), std::end(kFunctions), word) != std::end(kFunctions) && take("("))
      return function(word);
    if (word == "None") return Value(std::monostate{});
    if (word == "True" || word == "False") return Value(word == "True");
    return element(lookup_(word));
  }

  Result function(std::string_view name) {
    std::vector<Result> arguments;
    do {
      arguments.push_back(conjunction());
    } while (take(","));
    if (!take(")")) return fail();
    return call(name, arguments);
  }

  // An index behind a name: mlp_layer_types[i]. The elements of a string are its letters: pattern[i] == 'M'.
  Result element(Result value) {
    while (take("[")) {
      const auto index = integer_of(sum());
      if (!take("]")) return fail();
      const auto* list = value ? std::get_if<const Json*>(&*value) : nullptr;
      const auto* text = value ? std::get_if<std::string>(&*value) : nullptr;
      if (text != nullptr && index && *index >= 0 && *index < static_cast<std::int64_t>(text->size())) {
        value = Value(std::string(1, (*text)[static_cast<std::size_t>(*index)]));
      } else if (list == nullptr || !index || *index < 0 || *index >= static_cast<std::int64_t>((*list)->size())) {
        value = std::nullopt;
      } else {
        value = to_value((**list)[static_cast<std::size_t>(*index)]);
      }
    }
    return value;
  }

  // A number; "2I" is 2 times I.
  Result number() {
    std::int64_t value = 0;
    while (position_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[position_]))) {
      if (__builtin_mul_overflow(value, std::int64_t{10}, &value) ||
          __builtin_add_overflow(value, std::int64_t{text_[position_] - '0'}, &value)) {
        return fail();
      }
      ++position_;
    }
    if (position_ < text_.size() && text_[position_] == '.') return fraction(value);
    const bool name_follows = position_ < text_.size() &&
                              (std::isalpha(static_cast<unsigned char>(text_[position_])) || text_[position_] == '_');
    return name_follows ? apply("*", Value(value), element(lookup_(take_identifier()))) : Result(value);
  }

  Result fraction(std::int64_t whole) {
    const std::size_t start = position_++;
    while (position_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[position_]))) ++position_;
    const std::string digits = std::to_string(whole) + std::string(text_.substr(start, position_ - start));
    double value = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return end.ec == std::errc() ? Result(value) : fail();
  }

  Result quoted() {
    const std::size_t end = text_.find('\'', position_ + 1);
    if (end == std::string_view::npos) return fail();
    Value value = std::string(text_.substr(position_ + 1, end - position_ - 1));
    position_ = end + 1;
    return value;
  }

  std::string_view take_comparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (take(op)) return op;
    }
    if (take_word("in")) return "in";
    const std::size_t before = position_;
    if (take_word("not") && take_word("in")) return "not in";
    position_ = before;
    return {};
  }

  std::string_view take_identifier() {
    skip_space();
    const std::size_t start = position_;
    while (position_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[position_])) ||
                                        text_[position_] == '_' || (text_[position_] == '.' && position_ > start))) {
      ++position_;
    }
    return text_.substr(start, position_ - start);
  }

  bool take_word(std::string_view word) {
    const std::size_t before = position_;
    if (take_identifier() == word) return true;
    position_ = before;
    return false;
  }

  bool take(std::string_view symbol) {
    skip_space();
    if (text_.substr(position_, symbol.size()) != symbol) return false;
    position_ += symbol.size();
    return true;
  }

  void skip_space() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
  }

  Result fail() {
    failed_ = true;
    position_ = text_.size();
    return std::nullopt;
  }

  std::string_view text_;
  const Lookup& lookup_;
  std::size_t position_ = 0;
  int depth_ = 0;
  bool failed_ = false;
};

}  // namespace

std::optional<Value> evaluate(std::string_view expression, const Lookup& lookup) {
  return Evaluator(expression, lookup).run();
}

std::optional<std::int64_t> evaluate_integer(std::string_view expression, const Lookup& lookup) {
  return integer_of(evaluate(expression, lookup));
}

std::optional<bool> evaluate_condition(std::string_view expression, const Lookup& lookup) {
  const auto value = evaluate(expression, lookup);
  const bool* truth = value ? std::get_if<bool>(&*value) : nullptr;
  return truth ? std::optional(*truth) : std::nullopt;
}

std::optional<Value> to_value(const Json& json) {
  if (json.is_null()) return Value(std::monostate{});
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_string()) return Value(json.get<std::string>());
  if (json.is_array()) return Value(&json);
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) return std::nullopt;
  if (json.is_number_integer()) return Value(json.get<std::int64_t>());
  if (json.is_number_float()) return Value(json.get<double>());
  return std::nullopt;
}

}  // namespace peft::model
