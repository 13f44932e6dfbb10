#include "cli/verify.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <span>

#include "cli/json_output.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/units.h"

namespace peft::cli {
namespace {

constexpr std::size_t kShown = 20;  // differences on the screen; --json has up to 50

Json to_json(const VerifyReport& report) {
  Json differences = Json::array();
  for (const auto& difference : report.differences) {
    differences.push_back(
        {{"site", difference.site}, {"what", difference.what}, {"relative", number(difference.relative)}});
  }
  return {{"same", report.same},
          {"exactness", report.same ? Json(name(report.exactness)) : Json(nullptr)},
          {"compared", report.compared},
          {"identical", report.identical},
          {"largest_relative", number(report.largest_relative)},
          {"where", report.where},
          {"differences", differences},
          {"num_differences", report.num_differences},
          {"left_out", report.left_out},
          {"notes", report.notes}};
}

std::string same_but(std::int64_t left_out) {
  return fmt::format("same function but for {} {} left out", left_out, left_out == 1 ? "tensor" : "tensors");
}

void print(const VerifyReport& report) {
  if (report.same) {
    const std::string verdict =
        report.left_out.empty() ? "same function" : same_but(static_cast<std::int64_t>(report.left_out.size()));
    write_out(fmt::format("{}: {} matrices compared, {} identical ({})\n", bold(verdict, STDOUT_FILENO),
                          report.compared, report.identical, name(report.exactness)));
  } else {
    write_out(fmt::format("{}: {} differences, {} matrices compared, {} identical\n", bold("different", STDOUT_FILENO),
                          report.num_differences, report.compared, report.identical));
  }
  if (report.largest_relative > 0) {
    write_out(
        fmt::format("largest relative difference {:.3g} at {}\n", report.largest_relative, printable(report.where)));
  }
  if (!report.differences.empty()) {
    Table table({{"relative", Align::right}, {"where"}, {"what"}});
    const std::size_t shown = std::min(report.differences.size(), kShown);
    for (const auto& row : std::span(report.differences).first(shown)) {
      table.add({row.relative == 0 ? "" : fmt::format("{:.3g}", row.relative), row.site, row.what});
    }
    write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  }
  print_rest(report.num_differences - static_cast<std::int64_t>(std::min(report.differences.size(), kShown)),
             report.notes);
}

}  // namespace

void print_rest(std::int64_t not_shown, const std::vector<std::string>& notes) {
  if (not_shown > 0) write_out(fmt::format("  and {} more\n", not_shown));
  for (const auto& note : notes) write_out("note: " + printable(note, 1000) + "\n");
}

void VerifyCommand::require_adapters() const {
  for (const auto* values : {&input.from, &input.orientation, &input.b_packing, &input.adapter_name}) {
    if (values->size() > 2)
      throw Error(ErrorCode::USAGE, {.problem = "a flag is given more than twice: once for A, once for B",
                                     .got = values->back(),
                                     .hint = "peft verify --help"});
  }
  if (merged.empty() && adapters.size() == 2) return;
  if (!merged.empty() && !adapters.empty() && !input.base.empty()) return;
  const std::string problem = merged.empty()     ? "two adapters are compared"
                              : adapters.empty() ? "--merged needs an adapter"
                                                 : "--merged needs --base";
  throw Error(ErrorCode::USAGE,
              {.problem = problem, .got = std::to_string(adapters.size()) + " given", .hint = "peft verify --help"});
}

int run(const VerifyCommand& command) {
  if (!command.merged.empty()) return run_merged(command);
  VerifyOptions options;
  options.a = command.input.options(0);
  options.b = command.input.options(1);
  options.tolerance_rounded = command.tolerance == "rounded";
  options.threads = command.threads;
  const VerifyReport report = verify(command.adapters[0], command.adapters[1], options);
  if (command.json) {
    print_json(to_json(report));
  } else {
    print(report);
  }
  return report.same ? 0 : 1;
}

}  // namespace peft::cli
