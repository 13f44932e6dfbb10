#include "cli/pages/docs.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/engines/engine_pages.h"
#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "config/peft_keys.h"
#include "peft/error.h"
#include "peft/layout.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

const std::vector<std::string> kPages = {"errors", "layouts", "families", "config_fields", "engines", "readme"};
constexpr std::string_view kEngines = "engines/";  // and the name of one

constexpr std::string_view kGenerated =
    "<!-- Made by `peft docs`; change the table in the code, then `make docs`. -->\n\n";

// One layout, as rows of a table with two columns.
void describe_layout(const LayoutInfo& row, Table& table) {
  table.add({"written by", std::string(row.written_by)});
  table.add({"read by", std::string(row.read_by)});
  table.add({"keys", std::string(row.keys)});
  table.add({"lora_A", std::string(row.a)});
  table.add({"lora_B", std::string(row.b)});
  table.add({"notes", std::string(row.notes)});
}

std::string errors_page() {
  Table table({{"code"}, {"exit", Align::right}, {"meaning"}});
  for (const auto& row : error_codes()) {
    table.add({std::string(row.name), std::to_string(row.exit_code), std::string(row.meaning)});
  }
  return "# Errors\n\n" + std::string(kGenerated) +
         "An error is one line on stderr; with `--json` the same fields are an object on stdout.\n\n"
         "    error[CODE] file: \"tensor\": problem: expected X, got Y. hint: one action\n"
         "    {\"error\": {\"code\", \"file\", \"tensor\", \"problem\", \"expected\", \"got\", \"hint\"}}\n\n"
         "Fields that do not apply are empty. Text from a file is escaped (control and bidirectional characters "
         "become\n"
         "`\\u{..}`) and cut at 200 characters, with its full length named.\n\n"
         "| exit | meaning |\n|---:|---|\n"
         "| 0 | done; for `verify`: the same function |\n"
         "| 1 | an input is bad; for `verify`: the adapters differ |\n"
         "| 2 | the command line makes no sense, or a fact is missing; for `verify` also: an input is bad |\n"
         "| 3 | reading, writing or space |\n"
         "| 4 | a bug in peft.cpp: please report it |\n"
         "| 5 | stopped by a signal; nothing is left behind but what --resume needs |\n\n" +
         table.markdown();
}

std::string layouts_page() {
  std::string page =
      "# Layouts\n\n" + std::string(kGenerated) +
      "A layout is a form in which programs write LoRA factors to a file. `peft convert --to NAME` writes one,\n"
      "`peft inspect` names the one a file has. E experts, r rank per expert, e expert, k index in the rank;\n"
      "`in` and `out` are the widths of one expert's matrix, d1 and d2 the last two dimensions of the parameter as\n"
      "it is stored.\n";
  for (const auto& row : layouts()) {
    Table table({{"what"}, {"how"}});
    describe_layout(row, table);
    page += "\n## " + std::string(row.name) + "\n\n" + table.markdown();
  }
  return page;
}

std::string families_page() {
  Table moe({{"model_type"},
             {"v4 experts"},
             {"v5 experts"},
             {"orientation"},
             {"gate and up"},
             {"per-expert names"},
             {"config keys"},
             {"PEFT's config conversion"},
             {"router"},
             {"note"}});
  std::string dense;
  for (const auto& row : families()) {
    if (row.dense) {
      dense += (dense.empty() ? "`" : ", `") + row.model_type + "`";
      continue;
    }
    moe.add({row.model_type, row.v4_experts, row.v5_experts, row.orientation, row.gate_up, row.per_expert_names,
             row.config_keys, row.peft_config, row.router, row.note});
  }
  return "# Model families\n\n" + std::string(kGenerated) +
         "What the experts of each `model_type` are called and how they are stored, in transformers 4 and 5. The data "
         "is\n"
         "`data/families.json`; `--families FILE` adds rows of the same form.\n\n" +
         moe.markdown() + "\nFamilies without experts (their dense modules convert as they are): " + dense + ".\n";
}

std::string on_modules_only() {
  std::string text;
  for (const auto& row : config::config_keys()) {
    if (!row.on_parameters) text += (text.empty() ? "`" : ", `") + std::string(row.key) + "`";
  }
  return text;
}

std::string config_fields_page() {
  using enum Verb;
  constexpr std::pair<Verb, std::string_view> kColumns[] = {
      {targets, "targets"}, {convert, "convert"}, {verify, "verify"}, {merge, "merge"},
      {combine, "combine"}, {resize, "resize"},   {run, "run"},       {create, "create"}};
  std::vector<Column> columns = {{"field"}, {"what it says"}, {"default"}};
  for (const auto& [verb, name] : kColumns) columns.push_back({std::string(name)});
  Table fields(columns), refused({{"field"}, {"refused by"}, {"why"}, {"instead"}});
  for (const auto& row : config::config_keys()) {
    std::vector<std::string> cells = {std::string(row.key), std::string(row.what), std::string(row.value)};
    for (const auto& [verb, name] : kColumns) {
      cells.emplace_back(row.used.contains(verb) ? "used" : row.refused.contains(verb) ? "refused" : "-");
    }
    fields.add(std::move(cells));
    if (!row.refused.empty())
      refused.add({std::string(row.key), config::names(row.refused), std::string(row.why), std::string(row.hint)});
  }
  return "# Fields of adapter_config.json, and what each verb does with them\n\n" + std::string(kGenerated) +
         "Every field that LoraConfig of PEFT 0.17.0 to 0.21.2 has (a test compares), and below them what other "
         "programs "
         "and older\n"
         "versions write. `run` is an adapter on a model that runs: logits, generate, train. `create` is a new adapter "
         "there.\n"
         "`inspect` shows every field and refuses none; `extract` reads no config.\n\n"
         "- used: what the verb does depends on it.\n"
         "- `-`: it changes nothing of what the verb does, and is kept as it is.\n"
         "- refused: a value that says something is an error, CF\\_UNSUP. null, false, 0, `[]` and `{}` say nothing; "
         "where PEFT\n"
         "  makes an object of defaults of `{}`, or asks only whether the field is null (aLoRA), they do.\n\n" +
         fields.markdown() + "\n## What is refused, and why\n\n" + refused.markdown() +
         "\nFields that PEFT knows on modules only are LO\\_NO\\_FORM where a conversion would put them on "
         "parameters: " +
         on_modules_only() + ".\n";
}

std::string or_dash(const std::string& text) { return text.empty() ? "-" : text; }

std::string generations(const FamilyRow& row) {
  if (row.v4_experts.empty()) return "5";
  return row.v5_experts.empty() ? "4" : "4, 5";
}

Json to_json(const FamilyRow& row) {
  return {{"model_type", row.model_type},
          {"v4_experts", row.v4_experts},
          {"v5_experts", row.v5_experts},
          {"orientation", row.orientation},
          {"gate_up", row.gate_up},
          {"per_expert_names", row.per_expert_names},
          {"config_keys", row.config_keys},
          {"peft_config", row.peft_config},
          {"router", row.router},
          {"note", row.note},
          {"dense", row.dense}};
}

}  // namespace

void add_layouts(CLI::App& app, LayoutsCommand& command) {
  add_json(*app.add_subcommand("layouts", "List the layouts: who writes and reads them, keys, shapes"), command.json);
}

void add_families(CLI::App& app, FamiliesCommand& command) {
  auto& verb =
      *app.add_subcommand("families", "List the model families: what their experts are called and how they lie");
  verb.add_option("--families", command.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE");
  add_json(verb, command.json);
}

void add_docs(CLI::App& app, DocsCommand& command) {
  auto& verb = *app.add_subcommand("docs", "Print a page of docs/ that is made from the program's tables");
  verb.add_option("page", command.page, "errors, layouts, families, config_fields, engines, engines/NAME or readme")
      ->required();
  verb.group("");  // for `make docs`, not for users
}

int run(const DocsCommand& command) {
  if (command.page.starts_with(kEngines)) {
    write_out(engine_page(*engines::choose(command.page.substr(kEngines.size())).engine));
    return 0;
  }
  if (std::find(kPages.begin(), kPages.end(), command.page) == kPages.end())
    throw Error(ErrorCode::USAGE, {.problem = "there is no such page", .got = command.page});
  if (command.page == "engines") write_out(engines_page());
  if (command.page == "readme") write_out(readme_tables());
  if (command.page == "errors") write_out(errors_page());
  if (command.page == "layouts") write_out(layouts_page());
  if (command.page == "families") write_out(families_page());
  if (command.page == "config_fields") write_out(config_fields_page());
  return 0;
}

int run(const LayoutsCommand& command) {
  if (command.json) {
    Json rows = Json::array();
    for (const auto& row : layouts()) {
      rows.push_back({{"name", row.name},
                      {"written_by", row.written_by},
                      {"read_by", row.read_by},
                      {"keys", row.keys},
                      {"lora_a", row.a},
                      {"lora_b", row.b},
                      {"notes", row.notes}});
    }
    print_json({{"layouts", rows}});
    return 0;
  }
  const auto width = static_cast<std::size_t>(terminal_width());
  for (const auto& row : layouts()) {
    Table table({{""}, {""}});
    describe_layout(row, table);
    write_out(bold(row.name, STDOUT_FILENO) + "\n" + table.render(2, width));
  }
  return 0;
}

int run(const FamiliesCommand& command) {
  const auto rows = families(command.families_file);
  if (command.json) {
    Json json = Json::array();
    for (const auto& row : rows) json.push_back(to_json(row));
    print_json({{"families", json}});
    return 0;
  }
  Table table({{"model_type"}, {"transformers"}, {"orientation"}, {"gate_up"}, {"one module per expert"}});
  std::string dense;
  for (const auto& row : rows) {
    if (row.dense) {
      dense += (dense.empty() ? "" : ", ") + row.model_type;
      continue;
    }
    table.add({row.model_type, generations(row), or_dash(row.orientation), or_dash(row.gate_up),
               or_dash(row.per_expert_names)});
  }
  write_out(table.render(0, static_cast<std::size_t>(terminal_width())));
  if (!dense.empty()) write_out("\nwithout experts: " + printable(dense, 4000) + "\n");
  write_out("\nmodule paths, routers, notes: --json, docs/families.md\n");
  return 0;
}

}  // namespace peft::cli
