// A pickle as values. A pickle is a program: it can name any function of any Python module and have it called. This
// reader has no functions. It knows a list of names, which stand for tensors, storages and containers, and makes
// descriptions of them; any other name ends the reading.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/tensor.h"

namespace peft::pickle {

enum class Kind : std::uint8_t {
  none,
  boolean,
  integer,
  real,
  text,
  tuple,
  list,
  dict,     // items: key, value, key, value, ...
  name,     // of Python: number is a row of the table of names
  storage,  // text: the key; number: elements; dtype
  tensor,   // items: storage, offset, size, stride; dtype
};
struct Value {
  Kind kind = Kind::none;
  Dtype dtype = Dtype::unknown;
  std::int64_t number = 0;
  std::string_view text{};
  std::vector<std::uint32_t> items{};  // of other values, by their place
};

struct Pickle {
  std::vector<Value> values;
  std::uint32_t top = 0;
  std::vector<std::string> notes;  // what was left out: attributes of a container

  const Value& operator[](std::uint32_t place) const { return values[place]; }
};

// Throws E_PICKLE for a name, a call or an opcode that is not accepted, with what it is; PK_STREAM for what is no
// pickle. Memory is in proportion to the pickle, up to these limits: a tensor takes some 200 bytes and
// a dozen values.
inline constexpr std::uint64_t kMaxPickle = std::uint64_t{64} << 20;
inline constexpr std::size_t kMaxValues = std::size_t{4} << 20;
Pickle read_pickle(std::string_view bytes, const std::string& path);

}  // namespace peft::pickle
