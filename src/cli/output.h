// Text to stdout and stderr. Nothing here throws on a closed pipe; finish_output() says whether all text arrived.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

void write_out(std::string_view text);
void write_err(std::string_view text);

// "warning: ..." lines on stderr, escaped.
void write_warnings(const std::vector<std::string>& warnings);

// Whether the stream is a terminal that understands escape sequences (TERM is not "dumb").
bool is_smart_terminal(int descriptor);
// The text in bold or red; unchanged unless `descriptor` is a smart terminal and NO_COLOR is unset.
std::string bold(std::string_view text, int descriptor);
std::string red(std::string_view text, int descriptor);

// Columns of the terminal on stdout, or 0 when stdout is something else.
int terminal_width();

// Flushes stdout. Throws IO_WRITE if text was lost; a reader that closed its pipe has had enough and is no error.
void finish_output();

}  // namespace peft::cli
