#include "peft/error.h"

#include <gtest/gtest.h>

#include "base/text.h"

namespace peft {
namespace {

TEST(Error, PlaceKeepsFileAndTensor) {
  const ErrorPlace here = at("a.safetensors", "q.lora_A");
  try {
    here.fail(ErrorCode::ST_SHAPE, {.problem = "wrong", .expected = "[2]", .got = "[3]", .hint = "look"});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::ST_SHAPE);
    EXPECT_EQ(error.detail().file, "a.safetensors");
    EXPECT_EQ(error.detail().tensor, "q.lora_A");
    EXPECT_STREQ(error.what(), "error[ST_SHAPE] a.safetensors: \"q.lora_A\": wrong: expected [2], got [3]. hint: look");
  }
}

TEST(Error, NamesThePythonException) {
  const Error error(ErrorCode::CF_VALUE, {.problem = "wrong", .got = "3", .python_error = "ValueError"});
  EXPECT_STREQ(error.what(), "error[CF_VALUE]: wrong: got 3 (PEFT raises ValueError)");
}

TEST(Printable, KeepsOrdinaryText) {
  EXPECT_EQ(printable("model.layers.0.q_proj"), "model.layers.0.q_proj");
  EXPECT_EQ(printable("模型 é 😀"), "模型 é 😀");
  EXPECT_EQ(printable(""), "");
}

TEST(Printable, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\u{0}b");
  EXPECT_EQ(printable("\x1b[31mred\n"), "\\u{1b}[31mred\\u{a}");
  EXPECT_EQ(printable("\x7f"), "\\u{7f}");
  EXPECT_EQ(printable("\u009b"
                      "2J"),
            "\\u{9b}2J");
  EXPECT_EQ(printable("a\u202e"
                      "b\u2066"),
            "a\\u{202e}b\\u{2066}");
  EXPECT_EQ(printable("\u200f\ufeff\u2028\u061c"), "\\u{200f}\\u{feff}\\u{2028}\\u{61c}");
}

TEST(Printable, EscapesInvalidUtf8ByteByByte) {
  EXPECT_EQ(printable("\xff"
                      "a"),
            "\\x{ff}a");
  EXPECT_EQ(printable("\xc0\xaf"), "\\x{c0}\\x{af}");             // overlong /
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\x{ed}\\x{a0}\\x{80}");  // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\x{f4}\\x{90}\\x{80}\\x{80}");
  EXPECT_EQ(printable("\xe2\x82"), "\\x{e2}\\x{82}");  // cut short
}

TEST(Printable, CutsAndNamesTheLength) {
  EXPECT_EQ(printable(std::string(200, 'x')), std::string(200, 'x'));
  EXPECT_EQ(printable(std::string(1000, 'x')), std::string(200, 'x') + "... (1000 bytes in all)");
  EXPECT_EQ(printable("éééé", 2), "éé... (8 bytes in all)");
}

TEST(Printable, ErrorsEscapeEveryField) {
  const Error error(
      ErrorCode::ST_DUP,
      {.file = "a\n.safetensors", .tensor = "t\x1b", .problem = "p\r", .expected = "e\t", .got = "g\x07", .hint = "h"});
  EXPECT_STREQ(error.what(),
               "error[ST_DUP] a\\u{a}.safetensors: \"t\\u{1b}\": p\\u{d}: expected e\\u{9}, got g\\u{7}. hint: h");
}

// Against the definition: a code point is valid UTF-8 exactly in its shortest form.
TEST(Utf8, EveryCodePointInItsShortestFormOnly) {
  for (char32_t point = 0; point <= 0x110010; ++point) {
    const auto tail = [point](int shift) { return static_cast<char>(0x80 | (point >> shift & 0x3F)); };
    const std::string two{static_cast<char>(0xC0 | (point >> 6 & 0x1F)), tail(0)};
    const std::string three{static_cast<char>(0xE0 | (point >> 12 & 0xF)), tail(6), tail(0)};
    const std::string four{static_cast<char>(0xF0 | (point >> 18 & 0x7)), tail(12), tail(6), tail(0)};
    const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
    const bool needs_four = point >= 0x10000 && point <= 0x10FFFF;
    const auto number = static_cast<std::uint32_t>(point);
    if (point < 0x800) {
      ASSERT_EQ(utf8_step(two).length, point >= 0x80 ? 2u : 0u) << number;
    }
    if (point < 0x10000) {
      ASSERT_EQ(utf8_step(three).length, point >= 0x800 && !surrogate ? 3u : 0u) << number;
    }
    ASSERT_EQ(utf8_step(four).length, needs_four ? 4u : 0u) << number;
    ASSERT_EQ(utf8_step(four).code_point, needs_four ? point : 0u) << number;
  }
}

TEST(Utf8, FindsTheFirstInvalidByteAnywhere) {
  for (std::size_t length = 0; length < 40; ++length) {
    const std::string ascii(length, 'a');
    EXPECT_EQ(find_invalid_utf8(ascii), std::string::npos);
    EXPECT_EQ(find_invalid_utf8("é" + ascii + "é😀"), std::string::npos);
    for (std::size_t at = 0; at < length; ++at) {
      std::string bad = ascii;
      bad[at] = '\xc3';
      EXPECT_EQ(find_invalid_utf8(bad), at);
      EXPECT_EQ(find_invalid_utf8("é" + bad), at + 2);
    }
  }
}

}  // namespace

}  // namespace peft
