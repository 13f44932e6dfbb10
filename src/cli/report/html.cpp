#include "cli/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <set>

#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr int kColours = 9;
constexpr std::int64_t kTitled = 40'000;  // cells up to which each says its number when it is pointed at

std::string layer_name(std::int64_t layer) { return layer < 0 ? "outside of layers" : fmt::format("layer {}", layer); }

// "notes" and false of "<!-- notes -->"; an empty name for any other line.
std::pair<std::string_view, bool> marker(std::string_view line) {
  constexpr std::string_view kBegin = "<!-- ", kEnd = " -->", kAsItIs = ", as it is";
  if (!line.starts_with(kBegin) || !line.ends_with(kEnd)) return {};
  std::string_view name = line.substr(kBegin.size(), line.size() - kBegin.size() - kEnd.size());
  const bool as_it_is = name.ends_with(kAsItIs);
  if (as_it_is) name.remove_suffix(kAsItIs.size());
  return {name, as_it_is};
}

[[noreturn]] void missing(std::string_view what, std::string_view name) {
  at("report.html", std::string(name)).fail(ErrorCode::INTERNAL, {.problem = std::string(what)});
}

}  // namespace

std::string leaf(const std::string& path) {
  std::filesystem::path p = std::filesystem::path(path).lexically_normal();
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().empty() ? path : p.filename().string();
}

std::string html_escape(std::string_view text) {
  constexpr std::array<std::pair<char, std::string_view>, 5> kEntities = {
      {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}, {'\'', "&#39;"}}};
  std::string escaped;
  for (const char c : printable(text, 4096)) {
    const auto entity = std::find_if(kEntities.begin(), kEntities.end(), [c](const auto& e) { return e.first == c; });
    if (entity == kEntities.end())
      escaped += c;
    else
      escaped += entity->second;
  }
  return escaped;
}

HtmlTemplate::HtmlTemplate(std::string_view source) {
  std::string* fragment = nullptr;
  bool keep_lines = false;
  while (!source.empty()) {
    const std::size_t end = std::min(source.find('\n'), source.size());
    const std::string_view line = source.substr(0, end);
    source.remove_prefix(std::min(end + 1, source.size()));
    if (const auto [name, as_it_is] = marker(line); !name.empty()) {
      fragment = &fragments_[std::string(name)];
      keep_lines = as_it_is;
    } else if (fragment != nullptr) {
      *fragment += line;
      if (keep_lines) *fragment += '\n';
    }
  }
}

const std::string& HtmlTemplate::text(std::string_view name) const {
  const auto found = fragments_.find(name);
  if (found == fragments_.end()) missing("there is no such fragment", name);
  return found->second;
}

std::string HtmlTemplate::fill(std::string_view name, const Slots& slots) const {
  std::string_view rest = text(name);
  std::string filled;
  for (;;) {
    const std::size_t begin = rest.find("{{"), end = rest.find("}}", begin);
    if (end == std::string_view::npos) return filled.append(rest);
    const std::string_view slot = rest.substr(begin + 2, end - begin - 2);
    const auto found = slots.find(slot);
    if (found == slots.end() && slot != "nl") missing("nothing fills this slot", slot);
    filled.append(rest.substr(0, begin));
    filled.append(slot == "nl" ? "\n" : found->second);
    rest.remove_prefix(end + 2);
  }
}

std::string percent_text(double relative) {
  if (relative == 0) return "0";
  if (relative >= 0.001) return fmt::format("{:.3g} %", 100 * relative);
  return fmt::format("{:.2g} %", 100 * relative);
}

std::string ColourScale::step(double relative) const {
  if (!(relative > 0)) return "n";
  if (most_ <= least_ * 1.0001) return "c5";
  const double at = std::log(relative / least_) / std::log(most_ / least_);
  return fmt::format("c{}", std::clamp(static_cast<int>(at * kColours), 0, kColours - 1));
}

std::string ColourScale::legend(std::string (*text)(double), std::string_view nothing) const {
  std::string html = fmt::format("<div class=legend><span>{}</span><span class=steps>", text(least_));
  for (int i = 0; i < kColours; ++i) html += fmt::format("<i class=c{}></i>", i);
  return html + fmt::format("</span><span>{}</span><span style=\"margin-left:14px\"><i class=n></i> {}</span></div>",
                            text(most_), nothing);
}

std::string expert_map(const ExpertCells& cells, const ColourScale& scale, std::string (*text)(double),
                       std::string_view nothing) {
  std::set<std::int64_t> layers;
  for (const auto& [place, value] : cells.values) layers.insert(place.first);
  const std::int64_t columns = cells.columns, rows = static_cast<std::int64_t>(layers.size());
  const std::int64_t side = columns <= 16   ? 26
                            : columns <= 64 ? 14
                                            : 8,
                     height = rows <= 24 ? std::max<std::int64_t>(side, 14) : 11;
  const std::int64_t left = 66, top = 20;
  std::string html = fmt::format("<svg role=img aria-label=\"{}\" width={} height={}>", html_escape(cells.what),
                                 left + columns * side + 4, top + rows * height + 4);
  const std::int64_t every = columns <= 16 ? 1 : columns <= 64 ? 8 : 16;
  for (std::int64_t e = 0; e < columns; e += every)
    html += fmt::format("<text x={} y=13 text-anchor=middle>{}</text>", left + e * side + side / 2, e);
  std::int64_t y = top;
  const bool titled = rows * columns <= kTitled;
  for (const std::int64_t layer : layers) {
    html += fmt::format("<text x={} y={} text-anchor=end>{}</text>", left - 6, y + height / 2 + 4,
                        layer < 0 ? "-" : fmt::format("layer {}", layer));
    for (std::int64_t e = 0; e < columns; ++e) {
      const auto at = cells.values.find({layer, e});
      const double value = at == cells.values.end() ? 0 : at->second;
      html += fmt::format("<rect class={} x={} y={} width={} height={}", scale.step(value), left + e * side, y, side,
                          height);
      html += titled ? fmt::format("><title>{}, expert {}: {}</title></rect>", layer_name(layer), e,
                                   value > 0 ? text(value) : std::string(nothing))
                     : "/>";
    }
    y += height;
  }
  return "<div class=scroll>" + html + "</svg></div>";
}

std::string layer_map(const LayerCells& cells, const std::vector<std::string>& names, const ColourScale& scale,
                      std::string (*text)(double)) {
  std::string html = "<div class=scroll><table class=grid><thead><tr><th></th>";
  for (const std::string& name : names) html += "<th scope=col>" + html_escape(name) + "</th>";
  html += "</tr></thead><tbody>";
  for (const auto& [layer, modules] : cells) {
    html += "<tr><th scope=row>" + layer_name(layer) + "</th>";
    for (const std::string& name : names) {
      const auto at = modules.find(name);
      const double value = at == modules.end() ? 0 : at->second;
      html += fmt::format("<td class={}>{}</td>", scale.step(value), value > 0 ? text(value) : "");
    }
    html += "</tr>";
  }
  return html + "</tbody></table></div>";
}

namespace {

struct Range {
  double least = HUGE_VAL, most = -HUGE_VAL;
  void see(double value) { least = std::min(least, value), most = std::max(most, value); }
  double share(double value) const { return most > least ? (value - least) / (most - least) : 0.5; }
};

}  // namespace

std::string line_chart(const std::vector<Series>& series, std::string_view what) {
  constexpr double kWidth = 1000, kHeight = 220, kLeft = 70, kTop = 14, kBottom = 26;
  Range x, y;
  for (const Series& line : series) {
    for (const auto& [px, py] : line.points) {
      if (std::isfinite(py)) x.see(px), y.see(py);
    }
  }
  if (!(y.most >= y.least)) return {};
  const auto at_x = [&](double value) { return kLeft + x.share(value) * (kWidth - kLeft - 10); };
  const auto at_y = [&](double value) { return kTop + (1 - y.share(value)) * (kHeight - kTop - kBottom); };
  std::string html =
      fmt::format("<svg role=img aria-label=\"{}\" viewBox=\"0 0 {} {}\" style=\"width:100%;max-width:{}px\">",
                  html_escape(what), kWidth, kHeight, kWidth);
  for (const double value : {y.least, (y.least + y.most) / 2, y.most}) {
    html += fmt::format("<path class=rule d=\"M{} {:.1f}H{}\"/><text x={} y={:.1f} text-anchor=end>{:.4g}</text>",
                        kLeft, at_y(value), kWidth - 10, kLeft - 6, at_y(value) + 4, value);
  }
  for (const double value : {x.least, x.most})
    html += fmt::format("<text x={:.1f} y={} text-anchor=middle>{:.0f}</text>", at_x(value), kHeight - 8, value);
  for (std::size_t i = 0; i < series.size(); ++i) {
    std::string path;
    for (const auto& [px, py] : series[i].points) {
      if (std::isfinite(py)) path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", at_x(px), at_y(py));
    }
    html += fmt::format("<path class=line{} d=\"{}\"/>", i, path);
    if (series.size() > 1)
      html += fmt::format("<text class=name{} x={} y={}>{}</text>", i, kLeft + 10 + 130 * static_cast<double>(i), kTop,
                          html_escape(series[i].name));
  }
  return "<div class=scroll>" + html + "</svg></div>";
}

}  // namespace peft::cli
