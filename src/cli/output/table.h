// Aligned columns of text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

enum class Align { left, right };
struct Column {
  std::string heading;
  Align align = Align::left;
};

// Cells hold untrusted text: render() escapes it.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }

  // One line per row, indented; a last column that would pass `width` is wrapped at spaces (0: never).
  std::string render(std::size_t indent = 0, std::size_t width = 0) const;
  // The same as a Markdown table.
  std::string markdown() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// `text` in lines of at most `width` columns, broken at spaces; a longer word keeps its line. 0: one line.
std::vector<std::string> wrap(std::string_view text, std::size_t width);

}  // namespace peft::cli
