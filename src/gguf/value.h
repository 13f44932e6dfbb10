// The metadata of a GGUF file: keys with typed values.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft::gguf {

// The numbers are those of the files.
enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

struct ValueTypeInfo {
  ValueType type;
  std::string_view name;
  std::uint64_t bytes;  // of a number; of a text or an array the fewest that one takes: its length, its type and count
};
// A number as it lies in a file.
template <class Number>
void append_number(std::string& out, Number number) {
  char bytes[sizeof number];
  std::memcpy(bytes, &number, sizeof number);
  out.append(bytes, sizeof number);
}

const ValueTypeInfo* find_value_type(std::uint32_t number);  // null for a number that is no type
const ValueTypeInfo& info(ValueType type);
bool is_scalar(ValueType type);  // neither a text nor an array

struct Value {
  ValueType type = ValueType::u8;
  std::string bytes{};                // of a text: the text; of all else: as in the file, little-endian
  ValueType element = ValueType::u8;  // of an array: the type of its elements, which may be arrays
  std::uint64_t count = 0;            // of an array

  bool operator==(const Value&) const = default;
};

// Keys in the order of the file. A file has some dozens.
using KeyValues = std::vector<std::pair<std::string, Value>>;
struct TypedMetadata {
  KeyValues values;
};
const Value* find_value(const KeyValues& values, std::string_view key);  // null when absent

// What a value says: nothing when it is of another kind.
std::optional<std::string_view> as_text(const Value& value);
std::optional<std::uint64_t> as_unsigned(const Value& value);  // of every integer type, unless it is negative
std::optional<double> as_number(const Value& value);           // of every integer and floating-point type
std::vector<Value> elements(const Value& array);               // empty for what is no array

Value text_value(std::string_view text);
Value u32_value(std::uint32_t number);
Value f32_value(float number);
Value array_value(ValueType element, std::span<const Value> elements);  // all of the type `element`

// For listings and messages: "llama" in quotes, 0.5, true, [12 x u32]. Text is escaped and cut.
std::string describe(const Value& value);

// Appends the value as it stands in a file, without the type in front of it.
void append_encoded(std::string& out, const Value& value);

}  // namespace peft::gguf
