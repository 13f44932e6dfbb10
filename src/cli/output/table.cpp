#include "cli/output/table.h"

#include <algorithm>

#include "cli/output/output.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr std::size_t kGap = 2;           // spaces between columns
constexpr std::size_t kNarrowest = 24;    // a wrapped column is not made narrower than this
constexpr std::size_t kCellLimit = 2000;  // characters of a cell

std::string pad(const std::string& text, std::size_t width, Align align) {
  const std::string fill(width - std::min(width, text_width(text)), ' ');
  return align == Align::left ? text + fill : fill + text;
}

std::string trim_right(std::string text) {
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

std::string escape_markdown(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '<' || c == '*' || c == '_' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

void Table::add(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (auto& cell : cells) cell = printable(cell, kCellLimit);
  rows_.push_back(std::move(cells));
}

std::string Table::render(std::size_t indent, std::size_t width) const {
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    std::size_t widest = text_width(columns_[i].heading);
    for (const auto& row : rows_) widest = std::max(widest, text_width(row[i]));
    widths.push_back(widest);
  }
  const std::size_t last = columns_.size() - 1;
  std::size_t before_last = indent;
  for (std::size_t i = 0; i < last; ++i) before_last += widths[i] + kGap;
  const std::size_t room = width > before_last + kNarrowest ? width - before_last : 0;

  std::string out;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    std::string line(indent, ' ');
    for (std::size_t i = 0; i < last; ++i) line += pad(cells[i], widths[i], columns_[i].align) + std::string(kGap, ' ');
    if (columns_[last].align == Align::right) {
      out += trim_right(line + pad(cells[last], widths[last], Align::right)) + "\n";
      return;
    }
    for (const auto& piece : wrap(cells[last], room)) {
      out += trim_right(line + piece) + "\n";
      line.assign(before_last, ' ');
    }
  };
  std::vector<std::string> headings;
  for (const auto& column : columns_) headings.push_back(column.heading);
  const bool has_heading = std::any_of(headings.begin(), headings.end(), [](const auto& h) { return !h.empty(); });
  if (has_heading) add_line(headings);
  for (const auto& row : rows_) add_line(row);
  return out;
}

std::string Table::markdown() const {
  std::string out = "|", rule = "|";
  for (const auto& column : columns_) {
    out += " " + column.heading + " |";
    rule += column.align == Align::right ? "---:|" : "---|";
  }
  out += "\n" + rule + "\n";
  for (const auto& row : rows_) {
    out += "|";
    for (const auto& cell : row) out += " " + escape_markdown(cell) + " |";
    out += "\n";
  }
  return out;
}

std::vector<std::string> wrap(std::string_view text, std::size_t width) {
  if (width == 0 || text_width(text) <= width) return {std::string(text)};
  std::vector<std::string> lines(1);
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t space = std::min(text.find(' ', at), text.size());
    const std::string_view word = text.substr(at, space - at);
    if (!lines.back().empty() && text_width(lines.back()) + 1 + text_width(word) > width) lines.emplace_back();
    if (!lines.back().empty()) lines.back() += ' ';
    lines.back() += word;
    at = space + 1;
  }
  return lines;
}

}  // namespace peft::cli
