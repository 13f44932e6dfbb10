// JSON files that describe models: config.json, module trees, family tables. Their size and depth have limits.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "peft/error.h"

namespace peft::model {

using Json = nlohmann::json;
// Module trees need the order of their keys.
using OrderedJson = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;

// The text of a JSON file, at most safetensors::kMaxTextBytes of it. Throws IO_OPEN for a file that is missing or
// cannot be opened, and MD_FORM for one that is too long or a Git LFS pointer.
std::string read_text(const std::string& path);

// The object in a text. Throws `code` for text that is not JSON or not an object, and ST_DEPTH for objects and lists
// that are nested deeper than kMaxJsonDepth. `file` is for messages.
Json parse_object(std::string_view text, const std::string& file, ErrorCode code = ErrorCode::MD_FORM);
// The same, with the keys in the order of the text.
OrderedJson parse_ordered_object(std::string_view text, const std::string& file, ErrorCode code = ErrorCode::MD_FORM);

// read_text() and parse_object() in one.
Json read_object(const std::string& path);

}  // namespace peft::model
