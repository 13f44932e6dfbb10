// What goes wrong, as one line or JSON and an exit code.
#pragma once

#include "peft/error.h"

namespace peft::cli {

// The exception that is being handled, as an Error: what the standard library throws is either memory or a bug of ours.
Error current_error();

// Prints the error and gives the exit code. 1 says "different" in verify, so that there a bad input is 2.
int report(const Error& error, bool json, bool is_verify);

}  // namespace peft::cli
