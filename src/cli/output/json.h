// Results and errors as JSON, and errors as a line and an exit code. JSON has sorted keys, an indent of 2, escaped
// non-ASCII characters, and floats as Python writes them.
#pragma once

#include <string>
#include <vector>

#include "peft/error.h"
#include "peft/plan.h"
#include "pythonic/python_json.h"

namespace peft::cli {

using pythonic::Json;

void print_json(const Json& value);   // to stdout, with a final newline
Json error_json(const Error& error);  // {code, file, tensor, problem, expected, got, hint, python_error}
Json plan_json(const Plan& plan);     // what --dry-run --json prints
Json number(double value);            // null for NaN and infinity, which JSON does not have
Json sorted(std::vector<std::string> texts);

// The error as a line on stderr, its first word in red.
void write_error(const Error& error);

// The exception that is being handled, as an Error. One of the standard library means that memory is gone, or a bug.
Error current_error();

// Prints the error and gives the exit code. 1 says "different" in verify and "not right" in doctor, so
// that there a bad input is 2.
int report(const Error& error, bool json, bool one_is_an_answer);

}  // namespace peft::cli
