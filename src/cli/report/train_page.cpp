#include "cli/report/train_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "cli/output/output.h"
#include "peft/error.h"

namespace peft::cli {

extern const std::string_view kReportTemplate;  // report.html, which CMake embeds

namespace {

std::string count_text(double count) { return grouped(static_cast<std::uint64_t>(count)); }
std::string norm_text(double norm) { return fmt::format("{:.3g}", norm); }
std::string loss_text(double loss) { return fmt::format("{:.4f}", loss); }

using Slots = HtmlTemplate::Slots;

void add_tiles(const TrainReport& report, Slots& slots) {
  const bool logged = !report.metrics.empty();
  slots["steps"] = grouped(static_cast<std::uint64_t>(report.steps));
  slots["epochs"] = logged ? fmt::format("{:.2f}", report.metrics.back().epoch) : "?";
  slots["loss"] = logged ? loss_text(report.metrics.back().loss) : "-";
  slots["first_loss"] = logged ? loss_text(report.metrics.front().loss) : "-";
  slots["tokens"] = logged ? count_text(static_cast<double>(report.metrics.back().num_tokens)) : "-";
  slots["trainable"] = grouped(static_cast<std::uint64_t>(report.trainable));
  slots["seconds"] = human_seconds(report.seconds);
  const auto best = std::ranges::min_element(report.evaluations, {}, &train::Evaluation::loss);
  slots["eval_loss"] = best == report.evaluations.end() ? "-" : loss_text(best->loss);
}

void add_charts(const TrainReport& report, Slots& slots) {
  Series loss{"training", {}}, eval{"evaluation", {}}, rate{"", {}}, norm{"", {}};
  for (const train::Metrics& m : report.metrics) {
    const auto step = static_cast<double>(m.step);
    loss.points.emplace_back(step, m.loss), rate.points.emplace_back(step, m.learning_rate);
    norm.points.emplace_back(step, m.grad_norm);
  }
  for (const train::Evaluation& e : report.evaluations) eval.points.emplace_back(static_cast<double>(e.step), e.loss);
  std::vector<Series> losses{loss};
  if (!eval.points.empty()) losses.push_back(eval);
  slots["loss_chart"] = line_chart(losses, "loss over steps");
  slots["rate_chart"] = line_chart({rate}, "learning rate over steps");
  slots["norm_chart"] = line_chart({norm}, "gradient norm over steps");
}

// The smallest and the largest of numbers above 0.
class Extent {
 public:
  void see(double value) {
    if (!(value > 0)) return;
    least_ = most_ == 0 ? value : std::min(least_, value);
    most_ = std::max(most_, value);
  }
  ColourScale scale() const { return {least_, most_}; }

 private:
  double least_ = 0, most_ = 0;
};

void add_maps(const HtmlTemplate& html, const TrainReport& report, Slots& slots) {
  slots["experts"] = slots["norms"] = "";
  if (!report.expert_tokens.empty()) {
    ExpertCells cells{{}, 0, "tokens by layer and expert"};
    Extent extent;
    for (const auto& [layer, counts] : report.expert_tokens) {
      cells.columns = std::max(cells.columns, static_cast<std::int64_t>(counts.size()));
      for (std::size_t e = 0; e < counts.size(); ++e) {
        const auto count = static_cast<double>(counts[e]);
        cells.values[{layer, static_cast<std::int64_t>(e)}] = count;
        extent.see(count);
      }
    }
    const ColourScale scale = extent.scale();
    slots["experts"] = html.fill("train_experts", {{"map", expert_map(cells, scale, count_text, "never chosen")},
                                                   {"legend", scale.legend(count_text, "never chosen")}});
  }
  if (report.norms.empty()) return;
  std::set<std::string> names;
  Extent extent;
  for (const auto& [layer, modules] : report.norms) {
    for (const auto& [name, norm] : modules) names.insert(name), extent.see(norm);
  }
  const ColourScale scale = extent.scale();
  slots["norms"] =
      html.fill("train_norms", {{"map", layer_map(report.norms, {names.begin(), names.end()}, scale, norm_text)},
                                {"legend", scale.legend(norm_text, "no LoRA here, or zero")}});
}

void add_samples(const HtmlTemplate& html, const TrainReport& report, Slots& slots) {
  std::string rows;
  for (const TrainSample& sample : report.samples) {
    rows += html.fill("sample", {{"beginning", html_escape(sample.beginning)},
                                 {"before", html_escape(sample.before)},
                                 {"after", html_escape(sample.after)}});
  }
  slots["samples"] = rows.empty() ? "" : html.fill("samples", {{"rows", rows}});
}

void add_notes(const HtmlTemplate& html, const TrainReport& report, Slots& slots) {
  std::string rows;
  for (const std::string& note : report.warnings) rows += html.fill("note", {{"text", html_escape(note)}});
  slots["notes"] = rows.empty() ? "" : html.fill("notes", {{"notes", rows}});
}

}  // namespace

std::string train_page(const TrainReport& report) {
  static const HtmlTemplate html(kReportTemplate);
  Slots slots{{"style", html.text("style")},
              {"name", html_escape(leaf(report.out))},
              {"base_name", html_escape(leaf(report.base))},
              {"base", html_escape(report.base)},
              {"data", html_escape(report.data)},
              {"out", html_escape(report.out)},
              {"finished", html_escape(report.finished)},
              {"version", std::string(kVersion)}};
  add_tiles(report, slots);
  add_charts(report, slots);
  add_maps(html, report, slots);
  add_samples(html, report, slots);
  add_notes(html, report, slots);
  return html.fill("train_page", slots);
}

void write_train_page(const std::string& file, const TrainReport& report) {
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out << train_page(report);
  out.close();
  if (!out)
    at(file).fail(ErrorCode::IO_WRITE,
                  {.problem = "writing the report failed; the trained adapter itself is complete"});
}

}  // namespace peft::cli
