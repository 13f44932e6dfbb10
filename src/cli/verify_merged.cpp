// peft verify --merged: whether a model is its base with adapters merged.
#include "peft/verify_merged.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <span>

#include "cli/json_output.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/units.h"
#include "cli/verify.h"

namespace peft::cli {
namespace {

constexpr std::size_t kShown = 20;  // differences on the screen; --json has up to 100

Json to_json(const VerifyMergedReport& report) {
  Json differences = Json::array();
  for (const auto& difference : report.differences) {
    differences.push_back({{"tensor", difference.tensor},
                           {"kind", difference.kind},
                           {"what", difference.what},
                           {"factor", number(difference.factor)},
                           {"relative", number(difference.relative)},
                           {"elements", difference.elements}});
  }
  return {{"same", report.same},
          {"tensors", report.tensors},
          {"changed", report.changed},
          {"copied", report.copied},
          {"elements",
           {{"exact", report.bounds.exact},
            {"one_rounding", report.bounds.one_rounding},
            {"two_roundings", report.bounds.two_roundings},
            {"beyond", report.bounds.beyond}}},
          {"bound", report.bound},
          {"worst_places", number(report.worst_places)},
          {"worst_tensor", report.worst_tensor},
          {"differences", differences},
          {"num_differences", report.num_differences},
          {"left_out", report.left_out},
          {"notes", report.notes}};
}

std::string percent(std::uint64_t part, std::uint64_t all) {
  return fmt::format("{:.4g}%", 100 * static_cast<double>(part) / static_cast<double>(all));
}

void print_elements(const VerifyMergedReport& report) {
  const MergeBounds& bounds = report.bounds;
  if (bounds.all() == 0) return;
  Table table({{"elements with a delta", Align::right}, {"share", Align::right}, {"distance from the exact sum"}});
  const auto add = [&](std::uint64_t count, const std::string& what) {
    if (count > 0) table.add({grouped(count), percent(count, bounds.all()), what});
  };
  add(bounds.exact, "none: the nearest number of the dtype");
  add(bounds.one_rounding, "one rounding, and the error of a sum in F32");
  add(bounds.two_roundings, "two roundings, or one for each adapter");
  add(bounds.beyond, "more than rounding explains");
  write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  write_out("  bound: " + printable(report.bound, 1000) + "\n");
  write_out(fmt::format("  largest: {:.4g} last places, at {}\n", report.worst_places, printable(report.worst_tensor)));
}

void print(const VerifyMergedReport& report) {
  if (report.same) {
    const std::string_view how = report.bounds.two_roundings > 0  ? "with two roundings"
                                 : report.bounds.one_rounding > 0 ? "with one rounding in F32"
                                                                  : "rounded once";
    const std::size_t left_out = report.left_out.size();
    const std::string verdict = left_out == 0 ? "merged" : fmt::format("merged but for {} tensors left out", left_out);
    write_out(fmt::format("{}: {} tensors changed as the adapters say ({}), {} are the base's\n",
                          bold(verdict, STDOUT_FILENO), report.changed, how, report.copied));
  } else {
    write_out(fmt::format("{}: {} differences in {} tensors\n", bold("not the merge of these", STDOUT_FILENO),
                          report.num_differences, report.tensors));
  }
  print_elements(report);
  if (!report.differences.empty()) {
    Table table({{"tensor"}, {"relative", Align::right}, {"what"}});
    const std::size_t shown = std::min(report.differences.size(), kShown);
    for (const auto& row : std::span(report.differences).first(shown)) {
      table.add({row.tensor, row.relative == 0 ? "" : fmt::format("{:.3g}", row.relative),
                 row.kind == "missing" || row.kind == "extra" ? row.kind + ": " + row.what : row.what});
    }
    write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  }
  print_rest(report.num_differences - static_cast<std::int64_t>(std::min(report.differences.size(), kShown)),
             report.notes);
}

}  // namespace

int run_merged(const VerifyCommand& command) {
  VerifyMergedOptions options;
  options.merged = command.merged;
  options.merge.base = command.input.base;
  options.merge.input = command.input.options();
  for (const auto& text : command.adapters) options.merge.adapters.push_back(parse_weighted_adapter(text));
  options.merge.base_is_residual = command.base_is_residual;
  options.threads = command.threads;
  const VerifyMergedReport report = verify_merged(options);
  if (command.json) {
    print_json(to_json(report));
  } else {
    print(report);
  }
  return report.same ? 0 : 1;
}

}  // namespace peft::cli
