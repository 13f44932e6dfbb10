// HTML as text: escaping, a template with slots, and the pictures of the report.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "cli/report/data.h"

namespace peft::cli {

std::string html_escape(std::string_view text);

// Named fragments of text with {{slots}}. A fragment begins at a line "<!-- name -->"; its lines are joined, and {{nl}}
// is a line break. After "<!-- name, as it is -->" lines stay lines and there are no slots.
class HtmlTemplate {
 public:
  using Slots = std::map<std::string, std::string, std::less<>>;

  explicit HtmlTemplate(std::string_view source);
  const std::string& text(std::string_view name) const;
  // Slots take HTML: whoever fills them escapes. Throws INTERNAL for a fragment or slot that is not there.
  std::string fill(std::string_view name, const Slots& slots) const;

 private:
  std::map<std::string, std::string, std::less<>> fragments_;
};

// Nine steps between the smallest and the largest change, by their logarithm.
class ColourScale {
 public:
  ColourScale(double least, double most) : least_(least), most_(most) {}
  std::string step(double relative) const;  // class of a cell: "n", "c0" ... "c8"
  std::string legend() const;

 private:
  double least_, most_;
};

std::string percent_text(double relative);                                 // "0.52 %"
std::string expert_map(const ReportData& data, const ColourScale& scale);  // SVG, layers x experts
std::string dense_map(const ReportData& data, const ColourScale& scale);   // a table, layers x modules

}  // namespace peft::cli
