// JSON files about models (config.json, module trees, family tables), with limits on size and depth.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "peft/error.h"

namespace peft::model {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Throws `code` for bad JSON or anything but an object, IO_OPEN for a file that cannot be read.
std::string read_text(const std::string& path);
Json parse_object(std::string_view text, const std::string& file, ErrorCode code);
OrderedJson parse_ordered_object(std::string_view text, const std::string& file, ErrorCode code);

}  // namespace peft::model
