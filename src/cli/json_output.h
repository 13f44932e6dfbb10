// JSON for --json: keys sorted, indent 2, non-ASCII escaped, floats as Python writes them.
#pragma once

#include "peft/error.h"
#include "peft/plan.h"
#include "pythonic/python_json.h"

namespace peft::cli {

using pythonic::Json;

void print_json(const Json& value);   // to stdout, with a final newline
Json error_json(const Error& error);  // {code, file, tensor, problem, expected, got, hint}
Json plan_json(const Plan& plan);     // what --dry-run --json prints
Json number(double value);            // null for NaN and infinity, which JSON does not have
Json sorted(std::vector<std::string> texts);

}  // namespace peft::cli
