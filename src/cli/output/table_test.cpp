#include "cli/output/table.h"

#include <gtest/gtest.h>

namespace peft::cli {
namespace {

TEST(Table, columns_are_aligned_and_lines_have_no_trailing_space) {
  Table table({{"name"}, {"n", Align::right}, {"what"}});
  table.add({"a", "1", "x"});
  table.add({"long", "100", ""});
  EXPECT_EQ(table.render(2), "  name    n  what\n  a       1  x\n  long  100\n");
}

TEST(Table, empty_headings_print_no_line) {
  Table table({{""}, {""}});
  table.add({"key", "value"});
  EXPECT_EQ(table.render(), "key  value\n");
}

TEST(Table, last_column_wraps_under_itself) {
  Table table({{"k"}, {"text"}});
  table.add({"a", "one two three four five six seven"});
  EXPECT_EQ(table.render(0, 28), "k  text\na  one two three four five\n   six seven\n");
  EXPECT_EQ(table.render(0, 10), table.render(0, 0)) << "too narrow to wrap in";
}

TEST(Table, untrusted_text_is_escaped) {
  Table table({{"k"}});
  table.add({"a\x1b[31mb\nc"});
  const std::string text = table.render();
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

TEST(Table, missing_cells_are_empty) {
  Table table({{"a"}, {"b"}});
  table.add({"1"});
  EXPECT_EQ(table.render(), "a  b\n1\n");
}

TEST(Table, markdown_escapes_its_own_marks) {
  Table table({{"a"}, {"b", Align::right}});
  table.add({"x|y", "<e>"});
  EXPECT_EQ(table.markdown(), "| a | b |\n|---|---:|\n| x\\|y | \\<e> |\n");
}

TEST(Wrap, a_word_longer_than_the_width_keeps_its_line) {
  EXPECT_EQ(wrap("aa bbbbbb cc", 4), (std::vector<std::string>{"aa", "bbbbbb", "cc"}));
  EXPECT_EQ(wrap("", 4), (std::vector<std::string>{""}));
}

}  // namespace
}  // namespace peft::cli
