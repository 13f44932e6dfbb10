#include "support/family_models.h"

#include <algorithm>

#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}
std::string at_layer(const std::string& path) { return replaced(path, "{layer}", std::to_string(kLayer)); }
std::string leaf_of(const std::string& path) { return path.substr(path.rfind('.') + 1); }

std::string role_of(const Json& form, const std::string& linear) {
  return form.contains("roles") && form.at("roles").contains(linear) ? form.at("roles").at(linear).get<std::string>()
                                                                     : "";
}

// Experts [out, in] stacked as a parameter lies: {"gate", "up"} or one of them.
NamedTensor stacked(const std::string& name, const std::vector<std::string>& projections, bool in_out, bool interleaved,
                    std::vector<ExpertMatrices>& experts) {
  NamedTensor tensor{name, {}, {}};
  for (ExpertMatrices& expert : experts) {
    const Matrix& first = expert.of(projections[0]);
    const auto parts = static_cast<std::int64_t>(projections.size());
    Matrix all(first.rows * parts, first.cols);
    for (std::int64_t p = 0; p < parts; ++p) {
      const Matrix& one = expert.of(projections[static_cast<std::size_t>(p)]);
      for (std::int64_t i = 0; i < one.rows; ++i) {
        for (std::int64_t j = 0; j < one.cols; ++j)
          all.at(interleaved ? i * parts + p : p * one.rows + i, j) = one.at(i, j);
      }
    }
    if (in_out) all = transposed(all);
    tensor.shape = {static_cast<std::int64_t>(experts.size()), all.rows, all.cols};
    tensor.values.insert(tensor.values.end(), all.values.begin(), all.values.end());
  }
  return tensor;
}

// Which projections a parameter of a form holds; empty: it is no matrix per expert.
std::vector<std::string> held_by(const Json& form, const std::string& parameter, bool sibling_is_fused) {
  if (parameter == form.value("fused", std::string())) return {"gate", "up"};
  if (parameter == "down_proj") return {"down"};
  if (parameter == "up_proj") return {"up"};
  if (sibling_is_fused && !form.contains("fused")) return {"down"};
  return {};
}

bool lies_in_out(const Json& dims, const std::vector<std::string>& projections) {
  const std::string first = dims.at(1).is_string() ? dims.at(1).get<std::string>() : "",
                    second = dims.at(2).is_string() ? dims.at(2).get<std::string>() : "";
  const auto intermediate = [](const std::string& dim) { return dim == "I" || dim == "2I"; };
  return projections[0] == "down" ? intermediate(first) && !intermediate(second)
                                  : intermediate(second) && !intermediate(first);
}

std::optional<std::vector<NamedTensor>> in_memory(const FamilyKind& kind, const std::vector<Json>& rows,
                                                  std::vector<ExpertMatrices>& experts, std::string& why) {
  std::vector<NamedTensor> tensors;
  const bool some_fused = std::ranges::any_of(
      rows, [&](const Json& row) { return kind.forms.at(row.at("form").get<std::string>()).contains("fused"); });
  for (const Json& row : rows) {
    const Json& form = kind.forms.at(row.at("form").get<std::string>());
    const std::string path = at_layer(row.at("path").get<std::string>());
    if (form.at("form") == "modules") {
      for (std::size_t e = 0; e < experts.size(); ++e) {
        for (const Json& linear : form.at("linears")) {
          const std::string own = linear.at(0).get<std::string>();
          const std::string module =
              replaced(form.value("expert_names", std::string("{expert}")), "{expert}", std::to_string(e));
          const Matrix& values = experts[e].of(role_of(form, own));
          tensors.push_back({path + "." + module + "." + own + ".weight", {values.rows, values.cols}, values.values});
        }
      }
      continue;
    }
    for (const Json& parameter : form.at("params")) {
      const std::string own = parameter.at(0).get<std::string>();
      const auto projections =
          parameter.at(1).size() == 3 ? held_by(form, own, some_fused && rows.size() > 1) : std::vector<std::string>{};
      if (projections.empty()) continue;
      const bool interleaved = form.value("order", std::string()).starts_with("interleaved");
      tensors.push_back(stacked(path + "." + own, projections, lies_in_out(parameter.at(1), projections),
                                interleaved && projections.size() == 2, experts));
    }
  }
  if (tensors.empty()) why = "no parameter that is a matrix per expert";
  return tensors.empty() ? std::nullopt : std::optional(std::move(tensors));
}

struct Source {
  std::vector<std::string> projections;
  bool interleaved = false, turned = false, unknown = false;
};
// What one tensor of a checkpoint holds of a parameter, by the conversion that makes the parameter of it.
Source source_of(const FamilyKind& kind, const std::string& disk, const std::string& memory) {
  const std::string target = leaf_of(memory);
  Source source{target == "gate_up_proj" ? std::vector<std::string>{"gate", "up"}
                : target == "down_proj"  ? std::vector<std::string>{"down"}
                                         : std::vector<std::string>{"up"}};
  for (const Json& list : kind.conversions) {
    for (const Json& step : list) {
      if (!step.contains("ops") || !step.at("to").is_string() ||
          leaf_of(replaced(step.at("to").get<std::string>(), "\\", "")) != target)
        continue;
      const Json from = step.at("from").is_array() ? step.at("from") : Json::array({step.at("from")});
      for (std::size_t i = 0; i < from.size(); ++i) {
        std::string pattern = replaced(from[i].get<std::string>(), "\\", "");
        const auto star = pattern.find(".*.");
        const std::string end = star == std::string::npos ? pattern : pattern.substr(star + 2);
        if (!disk.ends_with(end)) continue;
        if (from.size() == 2) source.projections = {i == 0 ? "gate" : "up"};
        for (const Json& op : step.at("ops")) {
          source.interleaved |= op.at(0) == "Interleave";
          source.turned |= op.at(0) == "Transpose";
          source.unknown |= op.at(0).get<std::string>().find("Dequantize") != std::string::npos ||
                            op.at(0).get<std::string>().starts_with("Ernie");
        }
        return source;
      }
    }
  }
  return source;
}

std::optional<std::vector<NamedTensor>> on_disk(const FamilyKind& kind, std::vector<ExpertMatrices>& experts,
                                                std::string& why) {
  const Json& row = kind.v5.front();
  if (!row.contains("disk") || !row.at("disk").is_array()) {
    why = "checkpoints name tensors as in memory";
    return std::nullopt;
  }
  const Json& form = kind.forms.at(row.at("form").get<std::string>());
  std::vector<NamedTensor> tensors;
  for (const Json& pair : row.at("disk")) {
    const std::string disk = at_layer(pair.at(0).get<std::string>()), memory = pair.at(1).get<std::string>();
    const bool parameter = std::ranges::any_of(form.value("params", Json::array()), [&](const Json& p) {
      return p.at(1).size() == 3 && memory == row.at("path").get<std::string>() + "." + p.at(0).get<std::string>();
    });
    if (!parameter) continue;
    const Source source = source_of(kind, disk, memory);
    if (source.unknown) {
      why = "the conversion is no copy of matrices";
      return std::nullopt;
    }
    if (disk.find("{expert}") == std::string::npos) {
      const bool in_out = form.value("layout", std::string()) == "in,out";
      tensors.push_back(stacked(disk, source.projections, in_out != source.turned, source.interleaved, experts));
      continue;
    }
    for (std::size_t e = 0; e < experts.size(); ++e) {
      const Matrix& values = experts[e].of(source.projections[0]);
      tensors.push_back({replaced(disk, "{expert}", std::to_string(e)), {values.rows, values.cols}, values.values});
    }
  }
  if (tensors.empty()) why = "the table lists no expert tensors on disk";
  return tensors.empty() ? std::nullopt : std::optional(std::move(tensors));
}

bool has_matrices(FamilyKind& kind) {
  const Json& form = kind.forms.at((kind.v5.empty() ? kind.v4 : kind.v5).front().at("form").get<std::string>());
  if (form.at("form") == "modules") {
    kind.has_gate = std::ranges::any_of(
        form.at("linears"), [&](const Json& l) { return role_of(form, l.at(0).get<std::string>()) == "gate"; });
    return true;
  }
  kind.has_gate = form.contains("fused");
  if (!std::ranges::all_of(form.at("params"), [](const Json& p) { return p.at(1).size() != 3; }) &&
      (form.contains("fused") || form.at("params").size() > 1)) {
    return std::ranges::any_of(
        form.at("params"), [&](const Json& p) { return !held_by(form, p.at(0).get<std::string>(), false).empty(); });
  }
  return false;
}

}  // namespace

Matrix& ExpertMatrices::of(const std::string& projection) {
  return *(projection == "gate" ? gate : projection == "up" ? up : down);
}

const char* name(BaseForm form) { return form == BaseForm::v4 ? "v4" : form == BaseForm::v5 ? "v5" : "disk"; }

std::vector<FamilyKind> family_kinds() {
  const Json table = read_json(std::filesystem::path(PEFT_SOURCE_DIR) / "data" / "families.json");
  std::vector<FamilyKind> kinds;
  for (const auto& [type, family] : table.at("families").items()) {
    const auto rows_of = [&](const char* generation) {
      std::vector<std::vector<Json>> groups;
      if (!family.contains(generation) || family.at(generation).is_null()) return groups;
      for (const Json& row : family.at(generation).at("experts")) {
        if (!groups.empty() && groups.back().front().at("block") == row.at("block"))
          groups.back().push_back(row);
        else
          groups.push_back({row});
      }
      return groups;
    };
    Json conversions = Json::array();
    if (family.contains("v5") && !family.at("v5").is_null() && family.at("v5").contains("conversion")) {
      for (const Json& use : family.at("v5").at("conversion"))
        conversions.push_back(table.at("conversions").at(use.at("ref").get<std::string>()));
    }
    const auto v4 = rows_of("v4"), v5 = rows_of("v5");
    for (std::size_t i = 0; i < std::max(v4.size(), v5.size()); ++i) {
      FamilyKind kind{type,
                      "",
                      i < v4.size() ? v4[i] : std::vector<Json>{},
                      i < v5.size() ? v5[i] : std::vector<Json>{},
                      table.at("forms"),
                      conversions,
                      family,
                      "",
                      true,
                      3,
                      ""};
      const Json& row = (kind.v5.empty() ? kind.v4 : kind.v5).front();
      kind.name = row.at("path").get<std::string>();
      kind.config_section = row.value("config", std::string());
      const Json& own_form = kind.forms.at(row.at("form").get<std::string>());
      if (own_form.contains("params") && own_form.at("params").at(0).at(1).at(0).is_number())
        kind.experts = own_form.at("params").at(0).at(1).at(0).get<std::int64_t>();
      if (!has_matrices(kind)) kind.problem = "its parameters are no matrix per expert";
      kinds.push_back(std::move(kind));
    }
  }
  return kinds;
}

std::optional<std::vector<NamedTensor>> experts_in(const FamilyKind& kind, BaseForm form,
                                                   std::vector<ExpertMatrices> experts, std::string& why) {
  if (form == BaseForm::disk) {
    if (!kind.v5.empty()) return on_disk(kind, experts, why);
    why = "transformers 5 does not have this type";
    return std::nullopt;
  }
  const auto& rows = form == BaseForm::v4 ? kind.v4 : kind.v5;
  if (!rows.empty()) return in_memory(kind, rows, experts, why);
  why = std::string("transformers ") + (form == BaseForm::v4 ? "4" : "5") + " does not have this type";
  return std::nullopt;
}

std::vector<std::string> held_by_parameter(const FamilyKind& kind, const Json& row, const std::string& parameter) {
  const auto& rows = kind.v5.empty() ? kind.v4 : kind.v5;
  const bool some_fused = std::ranges::any_of(
      rows, [&](const Json& r) { return kind.forms.at(r.at("form").get<std::string>()).contains("fused"); });
  return held_by(kind.forms.at(row.at("form").get<std::string>()), parameter, some_fused && rows.size() > 1);
}

std::optional<std::string> per_expert_key(const FamilyKind& kind, std::int64_t expert, const std::string& projection) {
  for (const auto* rows : {&kind.v4, &kind.v5}) {
    if (rows->empty()) continue;
    const Json& form = kind.forms.at(rows->front().at("form").get<std::string>());
    if (form.at("form") != "modules") continue;
    for (const Json& linear : form.at("linears")) {
      const std::string own = linear.at(0).get<std::string>();
      if (role_of(form, own) != projection) continue;
      return at_layer(rows->front().at("path").get<std::string>()) + "." +
             replaced(form.value("expert_names", std::string("{expert}")), "{expert}", std::to_string(expert)) + "." +
             own;
    }
  }
  if (kind.v5.empty() || !kind.v4.empty() || !kind.v5.front().contains("disk") ||
      !kind.v5.front().at("disk").is_array())
    return std::nullopt;
  for (const Json& pair : kind.v5.front().at("disk")) {
    const std::string disk = pair.at(0).get<std::string>();
    if (disk.find("{expert}") == std::string::npos || !disk.ends_with(".weight")) continue;
    const Source source = source_of(kind, disk, pair.at(1).get<std::string>());
    if (source.unknown || source.projections[0] != projection || source.projections.size() != 1) continue;
    return replaced(at_layer(disk.substr(0, disk.size() - 7)), "{expert}", std::to_string(expert));
  }
  return std::nullopt;
}

Json config_of(const FamilyKind& kind) {
  Json section = {
      {"hidden_size", kHidden}, {"num_hidden_layers", kLayer + 1}, {"vocab_size", 11}, {"tie_word_embeddings", false}};
  for (const auto* rows : {&kind.v5, &kind.v4}) {
    for (const Json& row : *rows) {
      const Json& keys = row.at("keys");
      for (const auto& [symbol, key] : keys.items()) {
        const std::int64_t value = symbol == "E"   ? kind.experts
                                   : symbol == "H" ? kHidden
                                   : symbol == "I" ? kIntermediate
                                                   : 4;
        if (!section.contains(key.get<std::string>())) section[key.get<std::string>()] = value;
      }
    }
  }
  Json config = {{"model_type", kind.model_type}, {"tie_word_embeddings", false}};
  if (kind.config_section.empty()) {
    config.update(section);
    return config;
  }
  const auto dot = kind.config_section.find('.');
  if (dot == std::string::npos)
    config[kind.config_section] = section;
  else
    config[kind.config_section.substr(0, dot)][kind.config_section.substr(dot + 1)] = section;
  return config;
}

std::string image_of(std::vector<NamedTensor> tensors) {
  std::ranges::sort(tensors, {}, &NamedTensor::name);
  std::vector<Stored> list;
  for (NamedTensor& tensor : tensors)
    list.push_back(stored(std::move(tensor.name), "F32", std::move(tensor.shape), std::move(tensor.values)));
  return safetensors_of(std::move(list));
}

}  // namespace peft::testing
