// describe() of whole model folders, against what transformers says about the same models (facts.json).
#include <gtest/gtest.h>

#include <iostream>
#include <map>
#include <set>

#include "model/path.h"
#include "peft/model.h"
#include "support/model_files.h"

namespace peft {
namespace {

using model::OrderedJson;
using test::fs::path;
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

// facts.json has several forms; this is what they have in common.
struct Facts {
  Shapes parameters;
  std::set<std::string> linear;  // empty: not said
  std::map<std::string, bool> is_transposed;
  std::optional<std::set<std::string>> buffers;
};

void add_parameters(const OrderedJson& json, Facts& facts) {
  if (json.is_array()) {
    for (const auto& row : json) {
      if (row.is_string()) facts.parameters[row.get<std::string>()] = {};
      if (row.is_object()) facts.parameters[row.at("name").get<std::string>()] = test::shape_of(row.at("shape"));
    }
    return;
  }
  for (const auto& [name, row] : json.items())
    facts.parameters[name] = test::shape_of(row.is_object() ? row.at("shape") : row);
}

Facts read_side(const OrderedJson& json) {
  Facts facts;
  add_parameters(json.at("parameters"), facts);
  for (const char* key : {"linear", "linear_modules", "conv1d_modules"}) {
    if (!json.contains(key)) continue;
    for (const auto& name : json.at(key)) facts.linear.insert(name.get<std::string>());
  }
  if (json.contains("modules") && json.at("modules").is_object() && facts.linear.empty()) {
    for (const auto& [name, type] : json.at("modules").items()) {
      if (type == "Linear" || type == "Conv1D") facts.linear.insert(name);
    }
  }
  if (json.contains("buffers")) {
    facts.buffers.emplace();
    for (const auto& row : json.at("buffers")) {
      facts.buffers->insert(row.is_string() ? row.get<std::string>() : row.at("name").get<std::string>());
    }
  }
  if (json.contains("is_transposed")) {
    for (const auto& [name, flag] : json.at("is_transposed").items()) facts.is_transposed[name] = flag.get<bool>();
  }
  if (json.contains("expert_modules_by_transformers")) {
    for (const auto& [version, list] : json.at("expert_modules_by_transformers").items()) {
      for (const auto& row : list) {
        if (row.contains("is_transposed"))
          facts.is_transposed[row.at("name").get<std::string>()] = row.at("is_transposed").get<bool>();
      }
    }
  }
  return facts;
}

bool lists_experts_one_by_one(const Facts& facts) {
  for (const auto& [name, shape] : facts.parameters) {
    if (model::path_key(name).key.find("experts.#.") != std::string::npos) return true;
  }
  return false;
}

// A tied weight has one parameter, under the embedding's name.
bool is_output(const ModuleTree& tree, const std::string& module) { return module == tree.output_embedding; }

// Buffers of transformers 4, which facts of that generation list among the parameters.
bool is_old_buffer(const std::string& name) {
  const std::string_view leaf = model::leaf(name);
  return leaf == "e_score_correction_bias" || leaf == "slope_rate" || leaf.ends_with("_decay");
}

void expect_parameters(const ModuleTree& tree, const Facts& facts) {
  Shapes ours;
  for (const Module& module : tree.modules) {
    if (module.kind != ModuleKind::other) ours[module.name + ".weight"] = module.weight;
  }
  for (const Parameter& parameter : tree.parameters) ours[parameter.full_name()] = parameter.shape;
  for (const auto& [name, shape] : facts.parameters) {
    if (model::leaf(name) == "bias" && !ours.contains(name)) continue;  // of Linears: not in a tree
    if (is_old_buffer(name) && !ours.contains(name)) continue;          // a config says nothing of buffers
    ASSERT_TRUE(ours.contains(name)) << name;
    EXPECT_TRUE(shape.empty() || ours.at(name) == shape) << name;
  }
  // Headers show buffers like parameters; where the facts do not list them, weights must fit all the same.
  for (const auto& [name, shape] : ours) {
    const bool buffer = facts.buffers ? facts.buffers->contains(name) : model::leaf(name) != "weight";
    const bool tied = is_output(tree, std::string(model::parent(name)));
    EXPECT_TRUE(facts.parameters.contains(name) || tied || buffer) << name << " is not a parameter";
  }
}

void expect_linears(const ModuleTree& tree, const Facts& facts) {
  if (facts.linear.empty()) return;
  std::set<std::string> ours;
  for (const Module& module : tree.modules) {
    if (module.kind == ModuleKind::linear || module.kind == ModuleKind::conv1d) ours.insert(module.name);
  }
  for (const std::string& name : facts.linear) EXPECT_TRUE(ours.contains(name)) << name;
  for (const std::string& name : ours) EXPECT_TRUE(facts.linear.contains(name)) << name << " is not a Linear";
}

void expect_flags(const Model& model, const Facts& facts) {
  for (const auto& [module, flag] : facts.is_transposed) {
    const auto located = model.locate(module);
    ASSERT_TRUE(located) << module;
    for (const auto& parameter : located->experts->form->v5) EXPECT_EQ(parameter.is_transposed, flag) << module;
  }
}

// From a config alone not everything is known; what is claimed must be right.
void expect_no_false_claims(const ModuleTree& tree, const Facts& facts) {
  const auto check = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    ASSERT_TRUE(facts.parameters.contains(name) || is_output(tree, std::string(model::parent(name)))) << name;
    const auto found = facts.parameters.find(name);
    const bool known = found != facts.parameters.end() && !found->second.empty() && !shape.empty();
    EXPECT_TRUE(!known || found->second == shape) << name;
  };
  for (const Module& module : tree.modules) {
    if (module.kind == ModuleKind::linear || module.kind == ModuleKind::conv1d) {
      check(module.name + ".weight", module.weight);
      EXPECT_TRUE(facts.linear.empty() || facts.linear.contains(module.name)) << module.name;
    }
  }
  for (const Parameter& parameter : tree.parameters) check(parameter.full_name(), parameter.shape);
}

void expect_side(const Model& model, Generation g, const OrderedJson& json) {
  const Facts facts = read_side(json);
  const auto& tree = model.tree(g);
  ASSERT_TRUE(tree) << (g == Generation::v4 ? "v4" : "v5");
  if (!tree->complete) {
    if (g == Generation::v4 || !lists_experts_one_by_one(facts)) expect_no_false_claims(*tree, facts);
    return;
  }
  expect_parameters(*tree, facts);
  if (g == Generation::v5 && lists_experts_one_by_one(facts)) return;
  expect_linears(*tree, facts);
  expect_flags(model, facts);
}

bool is_newest(const OrderedJson& side) {
  for (const auto& version : side.at("transformers")) {
    if (version == "5.24.0") return true;
  }
  return false;
}

// Modules as transformers 5 sees them, unless the folder says that 4 wrote its facts.
void check_model(const Model& model, const path& folder) {
  const OrderedJson facts = test::read_json(folder / "facts.json");
  EXPECT_EQ(model.model_type, facts.at("model_type"));
  if (facts.contains("v4")) {
    expect_side(model, Generation::v4, facts.at("v4"));
    for (const auto& side : facts.at("v5")) {
      if (is_newest(side)) expect_side(model, Generation::v5, side);
    }
  } else if (facts.contains("tensors")) {
    const path memory = folder.parent_path() / facts.at("in_memory_form").get<std::string>() / "facts.json";
    if (test::fs::exists(memory)) expect_side(model, Generation::v5, test::read_json(memory));
  } else {
    const bool old = folder.filename().string().ends_with("-tf4");
    expect_side(model, old ? Generation::v4 : Generation::v5, facts);
  }
}

TEST(ModelFolders, EveryGoldenModel) {
  int folders = 0;
  for (const path& folder : test::golden_entries("models")) {
    if (!test::fs::exists(folder / "facts.json")) continue;
    SCOPED_TRACE(folder.filename().string());
    check_model(describe({.base = folder.string()}), folder);
    check_model(describe({.base = (folder / "config.json").string()}), folder);
    ++folders;
  }
  if (folders == 0) GTEST_SKIP() << "no golden models at " << test::golden();
  std::cout << folders << " model folders\n";
}

}  // namespace
}  // namespace peft
