// JSON as Python's json module reads and writes it, with checks of our own.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "peft/error.h"

namespace peft::pythonic {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxJsonBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxJsonDepth = 64;

// Throws `code` for everything but one JSON value in UTF-8: also for a byte order mark, a key that appears twice, too
// much nesting, NaN and Infinity (which Python's json accepts), and numbers beyond double. The message names the key
// and the byte. An integer that no C++ type holds keeps the form in which it is written: see raw_number.
// `code_for_number` chooses another code for NaN, Infinity and 1e400, by the top-level key at which they stand.
Json parse_json(std::string_view text, const std::string& file, ErrorCode code = ErrorCode::CF_FORM,
                ErrorCode (*code_for_number)(std::string_view key) = nullptr);

// The text of an integer beyond 64 bits; empty for other values.
std::string raw_number(const Json& value);

// json.dumps(value, indent=indent, sort_keys=sort_keys); indent < 0: on one line. Non-ASCII is escaped.
std::string dump_python(const Json& value, int indent = 2, bool sort_keys = true);

// repr() of a Python float: 0.1, 1e-05, 1e+16, 5.0.
std::string python_float(double value);

}  // namespace peft::pythonic
