// Text to stdout and stderr, and numbers as people read them. Nothing here throws on a closed pipe; finish_output()
// says whether all text arrived.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

extern const char* const kVersion;  // "0.1.0", from CMakeLists.txt

void write_out(std::string_view text);
void write_err(std::string_view text);

// "warning: ..." and "note: ..." lines on stderr, escaped.
void write_warnings(const std::vector<std::string>& warnings);
void write_notes(const std::vector<std::string>& notes);

// Whether the stream is a terminal that understands escape sequences (TERM is not "dumb").
bool is_smart_terminal(int descriptor);
// The text in bold or red; unchanged unless `descriptor` is a smart terminal and NO_COLOR is unset.
std::string bold(std::string_view text, int descriptor);
std::string red(std::string_view text, int descriptor);

// Columns of the terminal on stdout, or 0 when stdout is something else.
int terminal_width();

// Flushes stdout. Throws IO_WRITE if text was lost; a reader that closed its pipe has had enough and is no error.
void finish_output();

std::string human_bytes(std::uint64_t bytes);   // "0 B", "1023 B", "1.5 KiB", "123 MiB": as plans print them
std::string grouped(std::uint64_t number);      // "1,234,567"
std::string human_seconds(double seconds);      // "12 ms", "3.4 s", "2:05", "1:02:03"
std::string short_number(double value);         // "16", "0.5", "1.41421": shortest text, six digits
std::size_t text_width(std::string_view utf8);  // columns, one per code point

}  // namespace peft::cli
