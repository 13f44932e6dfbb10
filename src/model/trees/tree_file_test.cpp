// Module-tree files of the golden data, as describe() reads them.
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
using test::code_of;
using test::scratch_file;
using test::fs::path;

// Every module of the tree file, in the generation it shows; "{0..11}" expanded by hand here, apart from the reader.
std::map<std::string, std::vector<std::int64_t>> expanded(const OrderedJson& json) {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const auto& [name, row] : json.items()) {
    const std::size_t open = name.find('{');
    if (open == std::string::npos) {
      shapes[name] = test::shape_of(row.is_array() && row.size() == 2 && row[0].is_string() ? row[1] : row);
      continue;
    }
    const std::size_t dots = name.find("..", open), close = name.find('}');
    for (int i = std::stoi(name.substr(open + 1)); i <= std::stoi(name.substr(dots + 2)); ++i) {
      shapes[name.substr(0, open) + std::to_string(i) + name.substr(close + 1)] = test::shape_of(row[1]);
    }
  }
  return shapes;
}

void expect_tree(const ModuleTree& tree, const OrderedJson& json, const std::string& what) {
  std::map<std::string, std::vector<std::int64_t>> weights, parameters;
  for (const Module& module : tree.modules) {
    if (!module.weight.empty()) weights[module.name] = module.weight;
  }
  for (const Parameter& parameter : tree.parameters) {
    if (parameter.name != "weight") parameters[parameter.full_name()] = parameter.shape;
  }
  EXPECT_EQ(weights, expanded(json.at("weights"))) << what;
  auto expected = expanded(json.at("parameters"));
  std::erase_if(expected, [](const auto& p) { return p.first.ends_with(".weight"); });
  EXPECT_EQ(parameters, expected) << what;
}

TEST(TreeFiles, EveryGoldenFile) {
  int files = 0;
  for (const path& file : test::golden_entries("config/models")) {
    const OrderedJson json = test::read_json(file);
    const Model model = describe({.base = file.string()});
    const bool v4 = file.filename().string().find(".v4-") != std::string::npos;
    ASSERT_TRUE(v4 ? model.v4 : model.v5) << file;
    EXPECT_EQ(model.model_type, json.at("model_type"));
    OrderedJson shown = json;
    if (json.at("model_type")
            .get<std::string>()
            .starts_with("granite")) {  // the file lists a parameter as a module, too
      for (const auto& [name, row] : json.at("weights").items()) shown["weights"][name] = row;
    }
    expect_tree(v4 ? *model.v4 : *model.v5, shown, file.filename().string());
    ++files;
  }
  EXPECT_GT(files, 0) << "no golden data at " << test::golden();
}

// The tree of one generation gives the tree of the other, wherever both are on file.
TEST(TreeFiles, OneGenerationGivesTheOther) {
  const std::set<std::string> differ{"jamba"};  // its router class came with 5.24 only; the table has 5.24
  int pairs = 0;
  for (const path& file : test::golden_entries("config/models")) {
    const std::string name = file.filename().string();
    const std::size_t at = name.find(".v4-");
    if (at == std::string::npos || differ.contains(name.substr(0, at))) continue;
    for (const char* version : {"5.5.4", "5.14.1", "5.24.0"}) {
      const std::string other = name.substr(0, at) + ".v5-" + version + ".json";
      if (!test::fs::exists(test::golden_tree(other))) continue;
      expect_tree(*describe({.base = file.string()}).v5, test::read_json(test::golden_tree(other)), name + " -> v5");
      expect_tree(*describe({.base = test::golden_tree(other)}).v4, test::read_json(file), other + " -> v4");
      ++pairs;
    }
  }
  if (pairs == 0) GTEST_SKIP() << "no pair of tree files here";
}

TEST(TreeFiles, ExpertsAndSizes) {
  const std::string file = test::golden_tree("mixtral.v4-4.57.6.json");
  if (!test::fs::exists(file)) GTEST_SKIP();
  const Model model = describe({.base = file});
  ASSERT_EQ(model.experts.size(), 2u);
  EXPECT_EQ(model.experts[1].num_experts, 12);
  EXPECT_EQ(model.experts[1].hidden, 40);
  EXPECT_EQ(model.experts[1].intermediate, 28);
  EXPECT_EQ(model.experts[1].fused_shape(model.experts[1].form->v5[0]), (std::vector<std::int64_t>{12, 56, 40}));
  EXPECT_EQ(model.has(Generation::v4, "model.layers.0.block_sparse_moe.experts.11.w1"), true);
  EXPECT_EQ(model.has(Generation::v5, "model.layers.0.block_sparse_moe.experts.11.w1"), false);
  EXPECT_EQ(model.kind(Generation::v4, "model.layers.0.block_sparse_moe.gate"), ModuleKind::linear);
  EXPECT_EQ(model.kind(Generation::v5, "model.layers.0.mlp.gate"), ModuleKind::other);
  ASSERT_NE(model.v5->find_parameter("model.layers.0.mlp.gate.weight"), nullptr);
  EXPECT_EQ(model.v5->output_embedding, "lm_head");
  EXPECT_EQ(model.v5->input_embedding, "model.embed_tokens");
}

TEST(TreeFiles, AreChecked) {
  const auto broken = [](const std::string& text) {
    return code_of([&] { describe({.base = scratch_file("tree.json", text)}); });
  };
  EXPECT_EQ(broken("{"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken("[]"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"weights": {}, "parameters": {}})"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "llama", "weights": [], "parameters": {}})"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "llama", "weights": {"a": 1}, "parameters": {}})"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "llama", "weights": {"a": ["Linear", [-1]]}, "parameters": {}})"),
            ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "llama", "weights": {"a.{0..}": ["Linear", [1, 2]]}, "parameters": {}})"),
            ErrorCode::MD_FORM);
  EXPECT_EQ(
      broken(R"({"model_type": "llama", "weights": {"a.{0..99999999999}": ["Linear", [1, 2]]}, "parameters": {}})"),
      ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "llama", "weights": {}, "parameters": {"weight": [1]}})"), ErrorCode::MD_FORM);
  EXPECT_EQ(broken(R"({"model_type": "nope", "weights": {}, "parameters": {}})"), ErrorCode::MD_FAMILY);
}

}  // namespace
}  // namespace peft
