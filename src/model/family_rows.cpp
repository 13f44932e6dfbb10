#include <algorithm>

#include "model/families.h"
#include "model/path.h"

namespace peft {
namespace {

using model::ExpertsRow;
using model::Family;
using model::Kind;

void append(std::string& text, const std::string& part, std::string_view separator = "; ") {
  if (part.empty()) return;
  if (!text.empty()) text += separator;
  text += part;
}

std::string parameters(const std::vector<ExpertsForm::Fused>& list, const std::string& path) {
  std::string text;
  for (const ExpertsForm::Fused& parameter : list) {
    std::string dims;
    for (const std::string& dim : parameter.dims) append(dims, dim, ", ");
    const std::string module = parameter.module.empty() ? "" : std::string(model::leaf(parameter.module)) + ".";
    append(text, module + parameter.name + " [" + dims + "]", ", ");
  }
  return text.empty() ? "" : path + ": " + text;
}

// The experts of one generation: parameters, or modules.
std::string experts_text(const Kind& kind, Generation g) {
  const auto& rows = g == Generation::v4 ? kind.v4 : kind.v5;
  const std::string& path = g == Generation::v4 ? kind.v4_path : kind.v5_path;
  if (rows.empty()) return {};
  if (rows.front()->form.modules) return path + "." + kind.form.expert_name;
  return parameters(g == Generation::v4 ? kind.form.v4 : kind.form.v5, path);
}

void describe_kind(const Kind& kind, FamilyRow& row) {
  append(row.v4_experts, experts_text(kind, Generation::v4));
  append(row.v5_experts, experts_text(kind, Generation::v5));
  for (const auto& list : {kind.form.v5, kind.form.v4}) {
    for (const ExpertsForm::Fused& parameter : list) {
      if (parameter.projections.empty() || !row.orientation.empty()) continue;
      row.orientation = parameter.in_out ? "in,out" : "out,in";
      if (parameter.projections.size() == 2) row.gate_up = parameter.interleaved ? "interleaved" : "gate, then up";
    }
  }
  std::string names;
  for (const auto& module : kind.form.per_expert)
    append(names, module.name + " (" + std::string(name(module.projection)) + ")", ", ");
  if (kind.form.per_expert_on_disk_only) names += " on disk";
  append(row.per_expert_names, names);
}

FamilyRow row_of(const Family& family) {
  FamilyRow row;
  row.model_type = family.model_type;
  row.peft_config = family.peft_config;
  for (const Kind& kind : family.kinds) describe_kind(kind, row);
  const ExpertsRow& first = family.v5 ? family.v5->experts.front() : family.v4->experts.front();
  for (const auto& [role, key] : first.keys) append(row.config_keys, role + " " + key, ", ");
  for (const auto& parameter : first.router) {
    if (parameter.dims.size() == 2 && parameter.dims.front() == "E")
      append(row.router, parameter.name + " (" + parameter.owner + ")", ", ");
  }
  if (!family.v4) append(row.note, "not in transformers v4");
  if (!family.v5) append(row.note, "not in transformers v5");
  if (family.peft_config.empty()) append(row.note, "PEFT does not convert its config");
  return row;
}

}  // namespace

std::vector<FamilyRow> families(const std::string& families_file) {
  const auto table = model::load_table(families_file);
  std::vector<FamilyRow> rows;
  for (const auto& [type, family] : table->families) rows.push_back(row_of(*family));
  for (const auto& [type, family] : table->dense) {
    FamilyRow row;
    row.model_type = type;
    row.dense = true;
    if (!family->v4) row.note = "not in transformers v4";
    rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(),
            [](const FamilyRow& a, const FamilyRow& b) { return a.model_type < b.model_type; });
  return rows;
}

}  // namespace peft
