#include "cli/verbs/verify.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <span>

#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "peft/error.h"
#include "peft/verbs.h"

namespace peft::cli {
namespace {

constexpr std::size_t kShown = 20;  // differences on the screen; --json has up to 50, or 100 of a merged model

// What follows a table of differences: how many are not in it, and the notes.
void print_rest(std::int64_t not_shown, const std::vector<std::string>& notes) {
  if (not_shown > 0) write_out(fmt::format("  and {} more\n", not_shown));
  for (const auto& note : notes) write_out("note: " + printable(note, 1000) + "\n");
}

Json to_json(const VerifyReport& report) {
  Json differences = Json::array();
  for (const auto& difference : report.differences) {
    differences.push_back(
        {{"site", difference.name}, {"what", difference.what}, {"relative", number(difference.relative)}});
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
      table.add({row.relative == 0 ? "" : fmt::format("{:.3g}", row.relative), row.name, row.what});
    }
    write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  }
  print_rest(report.num_differences - static_cast<std::int64_t>(std::min(report.differences.size(), kShown)),
             report.notes);
}

Json to_json(const VerifyMergedReport& report) {
  Json differences = Json::array();
  for (const auto& difference : report.differences) {
    differences.push_back({{"tensor", difference.tensor},
                           {"kind", name(difference.kind)},
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
      const bool is_named = row.kind == MergedDifference::Kind::missing || row.kind == MergedDifference::Kind::extra;
      table.add({row.tensor, row.relative == 0 ? "" : fmt::format("{:.3g}", row.relative),
                 is_named ? fmt::format("{}: {}", name(row.kind), row.what) : row.what});
    }
    write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  }
  print_rest(report.num_differences - static_cast<std::int64_t>(std::min(report.differences.size(), kShown)),
             report.notes);
}

constexpr const char* kVerifyExamples = R"(Examples:
  peft verify my-lora my-lora-v5
  peft verify a b --tolerance exact --json
  peft verify a b --from peft-fused-0.18 --from auto           --from for A only
  peft verify --merged out --base Qwen3-30B-A3B my-lora        is it the base with the adapter merged, tensor by tensor?
  peft verify --merged out --base M a@0.7 b@-0.4

Exit codes: 0 same function (or merged as it should be), 1 different, 2 an input is bad.)";

VerifyMergedReport verify_merged(const VerifyCommand& command) {
  VerifyMergedOptions options;
  options.merged = command.merged;
  options.merge.base = command.input.base;
  options.merge.input = command.input.options();
  for (const auto& text : command.adapters) options.merge.adapters.push_back(parse_weighted_adapter(text));
  options.merge.base_is_residual = command.base_is_residual;
  options.threads = command.threads;
  return peft::verify_merged(options);
}

VerifyReport verify(const VerifyCommand& command) {
  VerifyOptions options;
  options.a = command.input.options(0);
  options.b = command.input.options(1);
  options.tolerance_rounded = command.tolerance == "rounded";
  options.threads = command.threads;
  return peft::verify(command.adapters[0], command.adapters[1], options);
}

template <class Report>
int show(const VerifyCommand& command, const Report& report) {
  if (command.json) {
    print_json(to_json(report));
  } else {
    print(report);
  }
  return report.same ? 0 : 1;
}

}  // namespace

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
  return command.merged.empty() ? show(command, verify(command)) : show(command, verify_merged(command));
}

Json result(const VerifyCommand& command) {
  command.require_adapters();
  return command.merged.empty() ? to_json(verify(command)) : to_json(verify_merged(command));
}

void add_verify(CLI::App& app, VerifyCommand& command) {
  auto& verb = *app.add_subcommand(
      "verify", "Say whether two adapters are the same function, or whether a model has them merged");
  verb.add_option("adapters", command.adapters, "Two adapters; with --merged those that the model should hold")
      ->type_name("A B");
  verb.add_option("--merged", command.merged,
                  "Check this model instead: the base with the adapters (DIR@WEIGHT) merged, whoever did it")
      ->type_name("DIR");
  verb.add_option("--tolerance", command.tolerance, "What counts as the same: equal numbers, or equal up to rounding")
      ->capture_default_str()
      ->type_name("exact|rounded")
      ->check(quiet(CLI::IsMember({"exact", "rounded"})));
  verb.add_flag("--base-is-residual", command.base_is_residual,
                "With --merged: the base is the one that PiSSA, OLoRA, ... left behind");
  verb.add_option("--threads", command.threads, "Threads; all cores when not given")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
  add_json(verb, command.json);
  add_input_flags(verb, command.input, true);
  verb.footer(kVerifyExamples);
}

}  // namespace peft::cli
