#include "cli/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr int kSteps = 9;
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
