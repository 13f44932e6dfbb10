// JSON for --json: keys sorted, indent 2, non-ASCII escaped, floats as Python writes them.
#pragma once

#include <nlohmann/json.hpp>

#include "peft/error.h"
#include "peft/plan.h"

namespace peft::cli {

using Json = nlohmann::json;

void print_json(const Json& value);   // to stdout, with a final newline
Json error_json(const Error& error);  // {code, file, tensor, problem, expected, got, hint}
Json plan_json(const Plan& plan);     // what --dry-run --json prints
Json sorted(std::vector<std::string> texts);

}  // namespace peft::cli
