// HTML as text: escaping, templates with slots, and the pictures of the report.
#pragma once

#include <string>

#include "cli/report/data.h"

namespace peft::cli {

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
