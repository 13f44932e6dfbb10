#include "cli/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/report/report.h"

namespace peft::cli {
namespace {

constexpr int kSteps = 9;
constexpr std::int64_t kTitled = 40'000;  // cells up to which each says its number when it is pointed at

std::string layer_name(std::int64_t layer) { return layer < 0 ? "outside of layers" : fmt::format("layer {}", layer); }

}  // namespace

std::string percent_text(double relative) {
  if (relative == 0) return "0";
  if (relative >= 0.001) return fmt::format("{:.3g} %", 100 * relative);
  return fmt::format("{:.2g} %", 100 * relative);
}

std::string ColourScale::step(double relative) const {
  if (!(relative > 0)) return "n";
  if (most_ <= least_ * 1.0001) return "c5";
  const double at = std::log(relative / least_) / std::log(most_ / least_);
  return fmt::format("c{}", std::clamp(static_cast<int>(at * kSteps), 0, kSteps - 1));
}

std::string ColourScale::legend() const {
  std::string text = fmt::format("<div class=legend><span>{}</span><span class=steps>", percent_text(least_));
  for (int i = 0; i < kSteps; ++i) text += fmt::format("<i class=c{}></i>", i);
  return text +
         fmt::format("</span><span>{}</span><span style=\"margin-left:14px\"><i class=n></i> not changed</span></div>",
                     percent_text(most_));
}

std::string expert_map(const ReportData& data, const ColourScale& scale) {
  std::set<std::int64_t> layers;
  for (const auto& [place, change] : data.experts) layers.insert(place.first);
  const std::int64_t columns = data.most_experts, rows = static_cast<std::int64_t>(layers.size());
  const std::int64_t side = columns <= 16   ? 26
                            : columns <= 64 ? 14
                                            : 8,
                     height = rows <= 24 ? std::max<std::int64_t>(side, 14) : 11;
  const std::int64_t left = 66, top = 20;
  std::string text = fmt::format("<svg role=img aria-label=\"relative change by layer and expert\" width={} height={}>",
                                 left + columns * side + 4, top + rows * height + 4);
  const std::int64_t every = columns <= 16 ? 1 : columns <= 64 ? 8 : 16;
  for (std::int64_t e = 0; e < columns; e += every)
    text += fmt::format("<text x={} y=13 text-anchor=middle>{}</text>", left + e * side + side / 2, e);
  std::int64_t y = top;
  const bool titled = rows * columns <= kTitled;
  for (const std::int64_t layer : layers) {
    text += fmt::format("<text x={} y={} text-anchor=end>{}</text>", left - 6, y + height / 2 + 4,
                        layer < 0 ? "-" : fmt::format("layer {}", layer));
    for (std::int64_t e = 0; e < columns; ++e) {
      const auto at = data.experts.find({layer, e});
      const double relative = at == data.experts.end() ? 0 : at->second.relative();
      text += fmt::format("<rect class={} x={} y={} width={} height={}", scale.step(relative), left + e * side, y, side,
                          height);
      text += titled ? fmt::format("><title>{}, expert {}: {}</title></rect>", layer_name(layer), e,
                                   relative > 0 ? percent_text(relative) : "not changed")
                     : "/>";
    }
    y += height;
  }
  return "<div class=scroll>" + text + "</svg></div>";
}

std::string dense_map(const ReportData& data, const ColourScale& scale) {
  std::string text = "<div class=scroll><table class=grid><thead><tr><th></th>";
  for (const std::string& name : data.dense_names) text += "<th scope=col>" + html_escape(name) + "</th>";
  text += "</tr></thead><tbody>";
  for (const auto& [layer, modules] : data.dense) {
    text += "<tr><th scope=row>" + layer_name(layer) + "</th>";
    for (const std::string& name : data.dense_names) {
      const auto at = modules.find(name);
      const double relative = at == modules.end() ? 0 : at->second.relative();
      text += fmt::format("<td class={}>{}</td>", scale.step(relative), relative > 0 ? percent_text(relative) : "");
    }
    text += "</tr>";
  }
  return text + "</tbody></table></div>";
}

}  // namespace peft::cli
