// Numbers as people read them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace peft::cli {

std::string human_bytes(std::uint64_t bytes);  // "0 B", "1023 B", "1.5 KiB", "123 MiB": as plans print them
std::string grouped(std::uint64_t number);     // "1,234,567"
std::string human_seconds(double seconds);     // "12 ms", "3.4 s", "2:05", "1:02:03"
std::string shape_text(std::span<const std::int64_t> shape);  // "[8, 64]"
std::string short_number(double value);                       // "16", "0.5", "1.41421": shortest text, six digits
std::size_t text_width(std::string_view utf8);                // columns, one per code point

}  // namespace peft::cli
