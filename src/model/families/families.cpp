#include "model/families/families.h"

#include <algorithm>
#include <set>

#include "base/text.h"
#include "model/families/derive.h"
#include "model/families/disk_names.h"
#include "model/json_file.h"
#include "model/path.h"
#include "peft/error.h"

namespace peft::model {

extern const std::string_view kFamiliesJson;  // data/families.json, embedded by cmake/embed_tables.cmake

namespace {

constexpr std::string_view kBuiltIn = "the built-in family table";

std::string text_or(const Json& json, std::string_view key, std::string fallback = {}) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::move(fallback);
}

// A dimension is a formula, or a plain number.
std::string formula(const Json& json) {
  return json.is_string() ? json.get<std::string>() : std::to_string(json.get<std::int64_t>());
}

std::vector<std::string> formulas(const Json& json) {
  std::vector<std::string> result;
  for (const Json& dim : json) result.push_back(formula(dim));
  return result;
}

std::vector<ParameterRow> parameters(const Json& json) {
  std::vector<ParameterRow> rows;
  for (const Json& row : json) {
    const bool owned = row.size() > 2 && row.at(2).is_string();
    rows.push_back({row.at(0).get<std::string>(), formulas(row.at(1)), owned ? row.at(2).get<std::string>() : ""});
  }
  return rows;
}

FormRow read_form(const Json& json) {
  FormRow form;
  form.modules = json.at("form").get<std::string>() == "modules";
  form.params = parameters(json.at(form.modules ? "linears" : "params"));
  form.roles = json.value("roles", form.roles);
  form.fused = text_or(json, "fused");
  form.interleaved = text_or(json, "order").starts_with("interleaved");
  form.layout = text_or(json, "layout");
  form.expert_name = text_or(json, "expert_names", "{expert}");
  const auto flags = json.find("flags");
  if (flags != json.end() && flags->contains("is_transposed"))
    form.is_transposed = flags->at("is_transposed").get<bool>();
  return form;
}

// What a table's rows refer to by name.
struct Shared {
  std::map<std::string, FormRow> forms;
  std::map<std::string, Json> conversions;
};

ExpertsRow read_experts(const Json& json, const Shared& shared) {
  ExpertsRow row;
  row.path = json.at("path").get<std::string>();
  row.block = json.at("block").get<std::string>();
  row.class_name = text_or(json, "class");
  row.config = text_or(json, "config");
  row.form_id = json.at("form").get<std::string>();
  row.form = shared.forms.at(row.form_id);
  row.keys = json.at("keys").get<std::map<std::string, std::string>>();
  row.moe_layers = json.value("moe_layers", row.moe_layers);
  row.default_layers = text_or(json, "default_layers");
  row.layer_keys = json.value("layer_keys", row.layer_keys);
  if (json.contains("router")) row.router = parameters(json.at("router"));
  if (json.contains("shared")) row.shared = parameters(json.at("shared"));
  const auto disk = json.find("disk");
  if (disk != json.end() && disk->is_array()) {
    for (const Json& pair : *disk) row.disk.emplace_back(pair.at(0).get<std::string>(), pair.at(1).get<std::string>());
  }
  return row;
}

std::optional<GenerationRow> read_generation(const Json& family, std::string_view key, const Shared& shared) {
  const auto json = family.find(key);
  if (json == family.end() || json->is_null()) return std::nullopt;
  GenerationRow row;
  row.arch = text_or(*json, "arch");
  for (const Json& experts : json->at("experts")) row.experts.push_back(read_experts(experts, shared));
  row.linears = json->at("linears").get<std::vector<std::string>>();
  return row;
}

std::shared_ptr<const Family> read_family(const std::string& name, const Json& json, const Shared& shared) {
  auto family = std::make_shared<Family>();
  family->model_type = name;
  family->v4 = read_generation(json, "v4", shared);
  family->v5 = read_generation(json, "v5", shared);
  family->sub_configs = json.value("sub_configs", family->sub_configs);
  if (json.contains("peft")) family->peft_config = text_or(json.at("peft"), "config");
  family->ignored = json.value("ignored", family->ignored);
  std::vector<Json> conversions;
  std::vector<std::pair<std::string, Json>> scoped;
  if (family->v5 && json.at("v5").contains("conversion")) {
    for (const Json& use : json.at("v5").at("conversion")) {
      conversions.push_back(shared.conversions.at(use.at("ref").get<std::string>()));
      // An empty scope that is stated means: below the prefix of the base model.
      const std::string scope = text_or(use, "scope");
      scoped.emplace_back(use.contains("scope") && scope.empty() ? "." : scope, conversions.back());
    }
  }
  read_disk_names(*family, scoped);
  derive_kinds(*family, conversions);
  derive_renamings(*family);
  return family;
}

std::vector<DenseLinear> read_dense_linears(const Json& json) {
  std::vector<DenseLinear> rows;
  for (const Json& row : json) {
    DenseLinear linear;
    linear.path = row.at(0).get<std::string>();
    linear.dims = formulas(row.at(1));
    const bool typed = row.size() > 2 && row.at(2).get<std::string>() != "bias";
    linear.class_name = typed ? row.at(2).get<std::string>() : "Linear";
    if (linear.class_name == "Conv1D") linear.kind = ModuleKind::conv1d;
    rows.push_back(std::move(linear));
  }
  return rows;
}

std::shared_ptr<const DenseFamily> read_dense(const std::string& name, const Json& json) {
  auto family = std::make_shared<DenseFamily>();
  family->model_type = name;
  family->arch = text_or(json, "arch");
  family->v5 = read_dense_linears(json.at("linears"));
  const auto v4 = json.find("v4");
  if (v4 == json.end()) {
    family->v4 = family->v5;
  } else if (v4->is_array()) {
    family->v4 = read_dense_linears(*v4);
  }
  return family;
}

std::vector<Spelling> read_spellings(const Json& json) {
  std::vector<Spelling> spellings;
  for (const auto& [program, row] : json.items()) {
    Spelling spelling{program, row.at("experts").get<std::string>(), {}};
    for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
      const auto module = row.find(std::string(name(projection)));
      if (module != row.end()) spelling.modules.push_back({projection, module->get<std::string>()});
    }
    spellings.push_back(std::move(spelling));
  }
  return spellings;
}

// The parts of the table that are made of all rows together.
void derive_lookups(Table& table) {
  std::set<std::string> rules;
  table.part_of.clear();
  for (const auto& [name, family] : table.families) {
    for (const auto& [key, type] : family->sub_configs) {
      if (type.empty() || table.families.contains(type)) continue;
      // Several composites may have the part. The one whose text it is comes first.
      if (key == "text_config") {
        table.part_of[type] = name;
      } else {
        table.part_of.try_emplace(type, name);
      }
    }
    for (const Kind& kind : family->kinds) {
      for (const auto* rows : {&kind.v5, &kind.v4}) {
        for (const ExpertsRow* row : *rows) rules.insert(row->moe_layers.begin(), row->moe_layers.end());
      }
    }
  }
  rules.erase("all");
  table.layer_rules.assign(rules.begin(), rules.end());
  std::stable_sort(table.module_rules.begin(), table.module_rules.end(), [](const ModuleRule& a, const ModuleRule& b) {
    if ((a.type == "*") != (b.type == "*")) return b.type == "*";
    return a.part.size() > b.part.size();
  });
}

// Reads the rows of one file into the table. `key_read` is the key that is being read, for messages.
void read_rows(const Json& json, Shared& shared, Table& table, std::string& key_read) {
  const Json empty = Json::object();
  const auto section = [&](const char* key) -> const Json& {
    key_read = key;
    return json.contains(key) ? json.at(key) : empty;
  };
  for (const auto& [name, form] : section("forms").items()) shared.forms[key_read = name] = read_form(form);
  for (const auto& [name, list] : section("conversions").items()) shared.conversions[key_read = name] = list;
  for (const auto& [name, family] : section("families").items()) {
    key_read = name;
    table.dense.erase(name);
    table.families[name] = read_family(name, family, shared);
  }
  for (const auto& [name, family] : section("dense").items()) {
    key_read = name;
    table.families.erase(name);
    table.dense[name] = read_dense(name, family);
  }
  for (const auto& [type, linears] : section("dense_layers").items())
    table.dense_layers[key_read = type] = read_dense_linears(linears);
  for (const auto& [type, parts] : section("module_rules").items()) {
    for (const auto& [part, rules] : parts.items()) {
      table.module_rules.push_back({type, key_read = part, rules.get<std::vector<std::string>>()});
    }
  }
  for (const Json& pair : section("same_prefixes"))
    table.same_prefixes.emplace_back(pair.at(0).get<std::string>(), pair.at(1).get<std::string>());
  for (const auto& [type, rows] : section("spellings").items()) table.spellings[key_read = type] = read_spellings(rows);
  for (const auto& [type, row] : section("runtime").items()) table.runtime[type] = row;
  derive_lookups(table);
}

void read_file(std::string_view text, const std::string& file, Shared& shared, Table& table) {
  const Json json = parse_object(text, file, ErrorCode::MD_FAMILY);
  std::string key_read;
  try {
    read_rows(json, shared, table, key_read);
  } catch (const nlohmann::json::exception& error) {
    at(file, key_read)
        .fail(ErrorCode::MD_FAMILY, {.problem = "a row of the family table cannot be read",
                                     .got = error.what(),
                                     .hint = "see docs/add_a_family.md"});
  } catch (const std::out_of_range&) {
    at(file, key_read)
        .fail(ErrorCode::MD_FAMILY,
              {.problem = "a row names a form or conversion that is not there", .hint = "see docs/add_a_family.md"});
  }
}

struct BuiltIn {
  Shared shared;
  std::shared_ptr<const Table> table;
};

const BuiltIn& built_in() {
  static const BuiltIn result = [] {
    BuiltIn fresh;
    Table table;
    read_file(kFamiliesJson, std::string(kBuiltIn), fresh.shared, table);
    fresh.table = std::make_shared<const Table>(std::move(table));
    return fresh;
  }();
  return result;
}

}  // namespace

std::shared_ptr<const Table> load_table(const std::string& file) {
  if (file.empty()) return built_in().table;
  Shared shared = built_in().shared;  // a copy: forms of the file replace built-in ones for the rows of the file alone
  Table table = *built_in().table;
  read_file(read_text(file), file, shared, table);
  for (const auto& [type, family] : table.families) {
    const auto before = built_in().table->families.find(type);
    if (before == built_in().table->families.end() || before->second != family) table.replaced.insert(type);
  }
  for (const auto& [type, family] : table.dense) {
    const auto before = built_in().table->dense.find(type);
    if (before == built_in().table->dense.end() || before->second != family) table.replaced.insert(type);
  }
  return std::make_shared<const Table>(std::move(table));
}

std::vector<std::string> near_types(const Table& table, std::string_view name) {
  constexpr std::size_t kMaxNames = 3, kMaxLength = 64;
  if (name.size() > kMaxLength) return {};
  std::vector<std::pair<std::size_t, std::string>> found;
  const auto consider = [&](const std::string& type) {
    const std::size_t edits = edit_distance(name, type);
    const bool part =
        name.size() > 2 && (type.find(name) != std::string::npos || name.find(type) != std::string_view::npos);
    if (edits <= 2 + name.size() / 4 || part) found.emplace_back(edits, type);
  };
  for (const auto& [type, family] : table.families) consider(type);
  for (const auto& [type, family] : table.dense) consider(type);
  std::sort(found.begin(), found.end());
  std::vector<std::string> names;
  for (std::size_t i = 0; i < std::min(found.size(), kMaxNames); ++i) names.push_back(found[i].second);
  return names;
}

}  // namespace peft::model

namespace peft {
// ---- The rows for people: `peft families`

namespace {

using model::ExpertsRow;
using model::Family;
using model::Kind;

void append(std::string& text, const std::string& part, std::string_view separator = "; ") {
  if (part.empty()) return;
  if (!text.empty()) text += separator;
  text += part;
}

std::string parameters_text(const std::vector<ExpertsForm::Fused>& list, const std::string& path) {
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
  const auto& rows = kind.rows(g);
  const std::string& path = kind.path(g);
  if (rows.empty()) return {};
  if (rows.front()->form.modules) return path + "." + kind.form.expert_name;
  return parameters_text(kind.form.fused(g), path);
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
