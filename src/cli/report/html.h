// HTML as text: escaping, a template with slots, and the pictures of the report.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft::cli {

std::string html_escape(std::string_view text);
std::string leaf(const std::string& path);  // the last part of a path, for headings: "my-lora" of "/tmp/my-lora/"

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
  // `text` says what a number is, `nothing` what an empty cell means.
  std::string legend(std::string (*text)(double), std::string_view nothing) const;

 private:
  double least_, most_;
};

std::string percent_text(double relative);  // "0.52 %"

// Numbers by layer and expert as an SVG. 0: nothing.
struct ExpertCells {
  std::map<std::pair<std::int64_t, std::int64_t>, double> values;
  std::int64_t columns = 0;
  std::string what;  // for those who do not see it
};
std::string expert_map(const ExpertCells& cells, const ColourScale& scale, std::string (*text)(double),
                       std::string_view nothing);
// Numbers by layer and module as a table. Layer -1: outside of layers.
using LayerCells = std::map<std::int64_t, std::map<std::string, double>>;
std::string layer_map(const LayerCells& cells, const std::vector<std::string>& names, const ColourScale& scale,
                      std::string (*text)(double));

// Points (x, y), each series with its name, as an SVG. Points that are not finite are left out.
struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};
std::string line_chart(const std::vector<Series>& series, std::string_view what);

}  // namespace peft::cli
