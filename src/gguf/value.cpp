#include "gguf/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "peft/error.h"

namespace peft::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they stand in the file");

// Indexed by number.
constexpr std::array<ValueTypeInfo, 13> kValueTypes = {{
    {ValueType::u8, "u8", 1},
    {ValueType::i8, "i8", 1},
    {ValueType::u16, "u16", 2},
    {ValueType::i16, "i16", 2},
    {ValueType::u32, "u32", 4},
    {ValueType::i32, "i32", 4},
    {ValueType::f32, "f32", 4},
    {ValueType::boolean, "bool", 1},
    {ValueType::text, "text", 8},
    {ValueType::array, "array", 12},
    {ValueType::u64, "u64", 8},
    {ValueType::i64, "i64", 8},
    {ValueType::f64, "f64", 8},
}};

template <class Number>
Number load(std::string_view bytes) {
  Number number;
  std::memcpy(&number, bytes.data(), sizeof number);
  return number;
}

template <class Number>
Value number_value(ValueType type, Number number) {
  Value value{.type = type};
  append_number(value.bytes, number);
  return value;
}

// Calls body(number) with the number of a scalar other than a boolean, in its own type. False for all else.
template <class Body>
bool with_number(const Value& value, const Body& body) {
  switch (value.type) {
    case ValueType::u8:
      return body(load<std::uint8_t>(value.bytes)), true;
    case ValueType::i8:
      return body(load<std::int8_t>(value.bytes)), true;
    case ValueType::u16:
      return body(load<std::uint16_t>(value.bytes)), true;
    case ValueType::i16:
      return body(load<std::int16_t>(value.bytes)), true;
    case ValueType::u32:
      return body(load<std::uint32_t>(value.bytes)), true;
    case ValueType::i32:
      return body(load<std::int32_t>(value.bytes)), true;
    case ValueType::u64:
      return body(load<std::uint64_t>(value.bytes)), true;
    case ValueType::i64:
      return body(load<std::int64_t>(value.bytes)), true;
    case ValueType::f32:
      return body(load<float>(value.bytes)), true;
    case ValueType::f64:
      return body(load<double>(value.bytes)), true;
    default:
      return false;
  }
}

std::string_view cut(std::string_view& rest, std::uint64_t size) {
  const std::string_view part = rest.substr(0, size);
  rest.remove_prefix(size);
  return part;
}

// Takes one element from the bytes of an array. The reader of the header has checked them.
Value take_element(std::string_view& rest, ValueType type) {
  Value value{.type = type};
  if (is_scalar(type)) {
    value.bytes = cut(rest, info(type).bytes);
  } else if (type == ValueType::text) {
    const auto length = load<std::uint64_t>(cut(rest, sizeof(std::uint64_t)));
    value.bytes = cut(rest, length);
  } else {
    value.element = static_cast<ValueType>(load<std::uint32_t>(cut(rest, sizeof(std::uint32_t))));
    value.count = load<std::uint64_t>(cut(rest, sizeof(std::uint64_t)));
    const std::string_view start = rest;
    for (std::uint64_t i = 0; i < value.count; ++i) static_cast<void>(take_element(rest, value.element));
    value.bytes = start.substr(0, start.size() - rest.size());
  }
  return value;
}

}  // namespace

const ValueTypeInfo* find_value_type(std::uint32_t number) {
  return number < kValueTypes.size() ? &kValueTypes[number] : nullptr;
}

const ValueTypeInfo& info(ValueType type) { return kValueTypes[static_cast<std::uint32_t>(type)]; }

bool is_scalar(ValueType type) { return type != ValueType::text && type != ValueType::array; }

const Value* find_value(const KeyValues& values, std::string_view key) {
  const auto found = std::find_if(values.begin(), values.end(), [&](const auto& entry) { return entry.first == key; });
  return found == values.end() ? nullptr : &found->second;
}

std::optional<std::string_view> as_text(const Value& value) {
  if (value.type != ValueType::text) return std::nullopt;
  return value.bytes;
}

std::optional<std::uint64_t> as_unsigned(const Value& value) {
  std::optional<std::uint64_t> result;
  with_number(value, [&](auto number) {
    if constexpr (std::is_integral_v<decltype(number)>) {
      if (number >= 0) result = static_cast<std::uint64_t>(number);
    }
  });
  return result;
}

std::optional<double> as_number(const Value& value) {
  std::optional<double> result;
  with_number(value, [&](auto number) { result = static_cast<double>(number); });
  return result;
}

std::vector<Value> elements(const Value& array) {
  std::vector<Value> result;
  if (array.type != ValueType::array) return result;
  std::string_view rest = array.bytes;
  for (std::uint64_t i = 0; i < array.count; ++i) result.push_back(take_element(rest, array.element));
  return result;
}

Value text_value(std::string_view text) { return {.type = ValueType::text, .bytes = std::string(text)}; }
Value u32_value(std::uint32_t number) { return number_value(ValueType::u32, number); }
Value f32_value(float number) { return number_value(ValueType::f32, number); }

Value array_value(ValueType element, std::span<const Value> elements) {
  Value array{.type = ValueType::array, .element = element, .count = elements.size()};
  for (const Value& value : elements) append_encoded(array.bytes, value);
  return array;
}

std::string describe(const Value& value) {
  if (value.type == ValueType::text) return "\"" + printable(value.bytes) + "\"";
  if (value.type == ValueType::array) return fmt::format("[{} x {}]", value.count, info(value.element).name);
  if (value.type == ValueType::boolean) return value.bytes[0] != 0 ? "true" : "false";
  std::string text;
  with_number(value, [&](auto number) { text = fmt::format("{}", +number); });
  return text;
}

void append_encoded(std::string& out, const Value& value) {
  if (value.type == ValueType::text) append_number<std::uint64_t>(out, value.bytes.size());
  if (value.type == ValueType::array) {
    append_number(out, static_cast<std::uint32_t>(value.element));
    append_number(out, value.count);
  }
  out += value.bytes;
}

}  // namespace peft::gguf
