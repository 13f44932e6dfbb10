// simdjson's DOM parser of the calling thread. Its memory is kept from one file to the next: parsing a large header
// in fresh memory takes ten times as long.
#pragma once

#include <simdjson.h>

#include <cstddef>
#include <string_view>

namespace peft::safetensors {

inline constexpr std::size_t kMaxDepth = 64;  // of nested objects and arrays

// `json` is followed by SIMDJSON_PADDING readable bytes. The element is valid until the thread's next call.
simdjson::simdjson_result<simdjson::dom::element> parse_json(std::string_view json);

}  // namespace peft::safetensors
