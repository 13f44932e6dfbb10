#include "cli/verbs/inspect.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"

namespace peft::cli {
namespace {

constexpr const char* kInspectExamples = R"(Examples:
  peft inspect my-lora
  peft inspect my-lora --base Qwen3-30B-A3B      checks every name and shape against the model
  peft inspect org/my-lora --json                from the local Hugging Face cache

Exit code 1 when the file cannot be decoded.)";

void heading(std::string_view text) { write_out("\n" + bold(text, STDOUT_FILENO) + "\n"); }

std::string layout_text(const InspectReport& report) {
  if (!report.layout) return {};
  return report.has_experts ? std::string(info(*report.layout).name) : "dense (no experts; the same in every layout)";
}

std::string orientation_text(const InspectReport& report) {
  if (!report.orientation) return {};
  return *report.orientation == Orientation::reversed ? "reversed: lora_A has the output width"
                                                      : "natural: lora_A has the input width";
}

std::string b_packing_text(const InspectReport& report) {
  if (!report.b_packing) return {};
  return *report.b_packing == BPacking::grouped_by_expert ? "grouped by expert: column e * r + k"
                                                          : "rank-major: column k * E + e";
}

void facts(const InspectReport& report) {
  Table table({{""}, {""}});
  const auto add = [&](std::string_view what, std::string value) {
    if (!value.empty()) table.add({std::string(what), std::move(value)});
  };
  if (report.num_tensors > 0) add("layout", report.layout ? layout_text(report) : "could not be decided");
  add("written by", report.producer);
  add("model", report.family == report.model_type || report.family.empty()
                   ? report.model_type
                   : report.model_type + " (" + report.family + ")");
  std::string size =
      fmt::format("{} tensors, {} parameters, {}", grouped(static_cast<std::uint64_t>(report.num_tensors)),
                  grouped(report.parameters), human_bytes(report.bytes));
  if (!report.dtype.empty()) size += ", " + report.dtype;
  if (report.num_tensors > 0) add("size", size);
  if (report.num_layers > 0) {
    add("coverage", report.num_experts > 0 ? fmt::format("{} layers, {} experts", report.num_layers, report.num_experts)
                                           : fmt::format("{} layers", report.num_layers));
  }
  add("orientation", orientation_text(report));
  add("lora_B packing", b_packing_text(report));
  write_out(bold(printable(report.path, 1000), STDOUT_FILENO) + "\n" +
            table.render(2, static_cast<std::size_t>(terminal_width())));
}

void list(std::string_view title, const std::vector<std::string>& lines) {
  if (lines.empty()) return;
  heading(title);
  const int width = terminal_width();
  for (const auto& line : lines) {
    std::string lead = "  - ";
    for (const auto& piece :
         wrap(printable(line, 2000), width > 40 ? static_cast<std::size_t>(width) - lead.size() : 0)) {
      write_out(lead + piece + "\n");
      lead = "    ";
    }
  }
}

void print(const InspectReport& report) {
  const auto width = static_cast<std::size_t>(terminal_width());
  facts(report);
  list("Why this layout", report.evidence);
  if (report.num_tensors == 0 && !report.config.empty()) {  // else the tensors say it better
    heading("What the config says");
    Table table({{""}, {""}});
    for (const auto& [key, value] : report.config) table.add({key, printable(value, 200)});
    write_out(table.render(2, width));
  }
  if (!report.tensors.empty()) {
    heading("Tensors");
    Table table({{"count", Align::right}, {"shape"}, {"key"}, {"meaning"}});
    for (const auto& row : report.tensors) table.add({std::to_string(row.count), row.shape, row.key, row.meaning});
    write_out(table.render(2, width));
  }
  if (!report.ranks.empty()) {
    heading("Ranks");
    Table table(
        {{"count", Align::right}, {"rank", Align::right}, {"alpha", Align::right}, {"scale", Align::right}, {"where"}});
    for (const auto& row : report.ranks) {
      table.add({std::to_string(row.count), std::to_string(row.rank), short_number(row.alpha), short_number(row.scale),
                 row.site});
    }
    write_out(table.render(2, width));
  }
  if (!report.consumers.empty()) {
    heading("Who reads this file");
    Table table({{""}, {""}, {""}});
    for (const auto& row : report.consumers) table.add({row.name, std::string(name(row.outcome)), row.why});
    write_out(table.render(2, width));
  }
  list("Unusual", report.anomalies);
  list("Warnings", report.warnings);
  if (!report.error.empty()) list("Cannot be decoded", {report.error});
}

}  // namespace

Json to_json(const InspectReport& report) {
  Json tensors = Json::array(), ranks = Json::array(), consumers = Json::array();
  for (const auto& row : report.tensors) {
    tensors.push_back({{"key", row.key}, {"shape", row.shape}, {"meaning", row.meaning}, {"count", row.count}});
  }
  for (const auto& row : report.ranks) {
    ranks.push_back({{"site", row.site},
                     {"rank", row.rank},
                     {"alpha", number(row.alpha)},
                     {"scale", number(row.scale)},
                     {"count", row.count}});
  }
  for (const auto& row : report.consumers) {
    consumers.push_back({{"name", row.name}, {"verdict", name(row.outcome)}, {"why", row.why}});
  }
  Json config = Json::object();
  for (const auto& [key, value] : report.config) config[key] = Json::parse(value, nullptr, false);
  return {{"path", report.path},
          {"config", config},
          {"producer", report.producer},
          {"layout", layout_text(report)},
          {"family", report.family},
          {"model_type", report.model_type},
          {"dtype", report.dtype},
          {"evidence", report.evidence},
          {"tensors", tensors},
          {"num_tensors", report.num_tensors},
          {"num_layers", report.num_layers},
          {"num_experts", report.num_experts},
          {"bytes", report.bytes},
          {"parameters", report.parameters},
          {"ranks", ranks},
          {"orientation", orientation_text(report)},
          {"b_packing", b_packing_text(report)},
          {"anomalies", report.anomalies},
          {"warnings", report.warnings},
          {"consumers", consumers},
          {"error", report.error}};
}

void add_inspect(CLI::App& app, InspectCommand& command) {
  auto& verb =
      *app.add_subcommand("inspect", "Say what an adapter is: layout, producer, ranks, and who reads it right");
  verb.add_option("path", command.path, "The adapter: a folder, or org/name in the local Hugging Face cache")
      ->required()
      ->type_name("PATH");
  add_json(verb, command.json);
  add_input_flags(verb, command.input, false);
  verb.footer(kInspectExamples);
}

int run(const InspectCommand& command) {
  const InspectReport report = inspect(command.path, command.input.options());
  if (command.json) {
    print_json(to_json(report));
  } else {
    print(report);
  }
  return report.error.empty() ? 0 : 1;
}

}  // namespace peft::cli
