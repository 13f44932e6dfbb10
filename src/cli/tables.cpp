#include "cli/tables.h"

#include <unistd.h>

#include "cli/json_output.h"
#include "cli/output.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

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

void describe_layout(const LayoutInfo& row, Table& table) {
  table.add({"written by", std::string(row.written_by)});
  table.add({"read by", std::string(row.read_by)});
  table.add({"keys", std::string(row.keys)});
  table.add({"lora_A", std::string(row.a)});
  table.add({"lora_B", std::string(row.b)});
  table.add({"notes", std::string(row.notes)});
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
