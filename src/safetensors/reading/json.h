// The JSON of headers and indexes: simdjson parses it; slower parsers explain what is wrong with a text that it
// refuses.
#pragma once

#include <simdjson.h>

#include <cstddef>
#include <span>
#include <string_view>

#include "safetensors/reading/input_file.h"

namespace peft::safetensors {

inline constexpr std::size_t kMaxDepth = 64;  // of nested objects and arrays

// Uses the DOM parser of the calling thread, which keeps its memory from one file to the next: parsing a large header
// in fresh memory takes ten times as long. json_padding() readable bytes must follow `json`. The element is valid until
// the thread's next call.
simdjson::simdjson_result<simdjson::dom::element> parse_json(std::string_view json);
std::size_t json_padding();
// A buffer of the calling thread, for `length` bytes of JSON and the padding. It is used again by the next call.
std::span<char> json_buffer(std::size_t length);
// Frees that buffer and the memory of the parser, which is several times the size of the JSON: for callers that open
// one file and go on working.
void release_json_memory();

// "a string", "null", ...
std::string_view type_name(simdjson::dom::element value);
// Throws ST_DUP when an object anywhere inside `value` has a key twice.
void require_distinct_keys(simdjson::dom::element value, std::string_view tensor, const FileFacts& file);
// Throws for a -0 outside of strings: simdjson makes it 0, the Rust library refuses it.
void refuse_negative_zero(std::string_view json, const FileFacts& file);
// Says where and why `json`, which the parser refused, is wrong.
[[noreturn]] void explain_json_fault(std::string_view json, std::string_view parser_message, const FileFacts& file);

}  // namespace peft::safetensors
