#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <set>

#include "model/families/families.h"
#include "model/families/index.h"
#include "model/path.h"
#include "peft/error.h"
#include "peft/model.h"
#include "support/golden_files.h"
#include "test_paths.h"

namespace peft {
namespace {

using model::Family;
using model::Kind;
using model::OrderedJson;
using model::PathTemplate;
using test::fs::path;

ErrorCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::INTERNAL;
}

std::string scratch_file(const std::string& name, const std::string& text) {
  // Tests run side by side in processes of their own.
  const std::string file = testing::TempDir() + std::to_string(getpid()) + "_" + name;
  std::ofstream(file) << text;
  return file;
}

std::string tree_file(const std::string& name) { return (test::golden() / "config" / "models" / name).string(); }

// ---- every row of the table ---------------------------------------------------------------------------------------

// One adapter path per form the row has: experts modules, split modules, per-expert modules.
std::vector<std::string> names_of(const Kind& kind) {
  std::vector<std::string> names;
  for (const std::string& experts : {kind.v4_path, kind.v5_path}) {
    if (!experts.empty()) names.push_back(PathTemplate(experts).fill(3));
  }
  if (!kind.form.per_expert.empty()) {
    const std::string& experts = kind.v4_path.empty() ? kind.v5_path : kind.v4_path;
    for (const auto& module : kind.form.per_expert) {
      names.push_back(PathTemplate(experts + "." + kind.form.expert_name + "." + module.name).fill(3, 11));
    }
  }
  return names;
}

class EveryFamily : public testing::TestWithParam<std::string> {
 protected:
  const Family& row() const { return *model::load_table()->families.at(GetParam()); }
  Model described() const {
    std::vector<std::string> names;
    for (const Kind& kind : row().kinds) {
      for (std::string& module : names_of(kind)) names.push_back(std::move(module));
    }
    return describe({.family = GetParam(), .names = names});
  }
};

std::vector<std::string> all_families() {
  std::vector<std::string> types;
  for (const auto& [type, family] : model::load_table()->families) types.push_back(type);
  return types;
}

INSTANTIATE_TEST_SUITE_P(Table, EveryFamily, testing::ValuesIn(all_families()),
                         [](const auto& type) { return model::replace_all(type.param, "-", "_"); });

TEST_P(EveryFamily, DescribesItsLayers) {
  const Model model = described();
  ASSERT_EQ(model.experts.size(), row().kinds.size());
  for (const Experts& experts : model.experts) {
    EXPECT_EQ(experts.layer, 3);
    EXPECT_EQ(experts.num_experts, model.num_experts_assumed ? 12 : 0);
  }
  EXPECT_EQ(model.base_is_v5_only, !row().v4);
  EXPECT_EQ(model.base_is_v4_only, !row().v5);
}

TEST_P(EveryFamily, LocatesWhatItNames) {
  const Model model = described();
  for (const Experts& experts : model.experts) {
    for (const auto& module : experts.form->per_expert) {
      for (const std::int64_t expert : {0, 7, 11}) {
        const std::string path = experts.per_expert_module(expert, module.projection);
        const auto located = model.locate(path);
        ASSERT_TRUE(located) << path;
        EXPECT_EQ(located->experts, &experts) << path;
        EXPECT_EQ(located->expert, expert) << path;
        EXPECT_EQ(located->projection, module.projection) << path;
        EXPECT_EQ(model.kind(Generation::v4, path), ModuleKind::linear) << path;
      }
    }
    for (const Generation g : {Generation::v4, Generation::v5}) {
      for (const auto& parameter : g == Generation::v4 ? experts.form->v4 : experts.form->v5) {
        const std::string path = experts.fused_module(g, parameter);
        const auto located = model.locate(path);
        ASSERT_TRUE(located) << path;
        EXPECT_EQ(located->experts, &experts) << path;
        EXPECT_EQ(located->expert, -1) << path;
        if (!parameter.module.empty()) {
          ASSERT_NE(located->fused, nullptr) << path;
          EXPECT_EQ(located->fused->projections, parameter.projections) << path;
        }
      }
    }
  }
}

// From an expert's module to the fused parameter that holds it, and back by projection.
TEST_P(EveryFamily, PerExpertAndFusedNamesAreTheSameExperts) {
  const Model model = described();
  for (const Experts& experts : model.experts) {
    if (experts.form->per_expert.empty() || experts.form->v5.empty()) continue;
    std::set<Projection> fused;
    for (const auto& parameter : experts.form->v5)
      fused.insert(parameter.projections.begin(), parameter.projections.end());
    for (const auto& module : experts.form->per_expert) {
      EXPECT_TRUE(fused.contains(module.projection)) << GetParam() << " " << module.name;
      const auto located = model.locate(experts.per_expert_module(5, module.projection));
      ASSERT_TRUE(located);
      EXPECT_EQ(located->experts->fused_module(Generation::v5, experts.form->v5.front()),
                experts.fused_module(Generation::v5, experts.form->v5.front()));
    }
    EXPECT_EQ(fused.size(), experts.form->per_expert.size()) << GetParam();
  }
}

TEST_P(EveryFamily, RenamesThereAndBack) {
  const Model model = described();
  for (const auto& [g, other] :
       {std::pair{Generation::v4, Generation::v5}, std::pair{Generation::v5, Generation::v4}}) {
    if (!row().generation(g)) continue;
    for (const std::string& linear : row().generation(g)->linears) {
      const std::string path = PathTemplate(linear).fill(3);
      const std::string there = model.rename(path, g, other);
      EXPECT_EQ(model.rename(there, other, g), path);
      // What both generations know must arrive at a name the other one knows.
      if (row().generation(other) && linear.find("{layer}") != std::string::npos) {
        EXPECT_NE(model.index->find_known(other, there), nullptr) << path << " -> " << there;
      }
    }
  }
}

// A config with the default keys: every formula of the row has a value.
TEST_P(EveryFamily, FormulasEvaluate) {
  OrderedJson config{{"model_type", GetParam()}, {"num_hidden_layers", 4}};
  for (const Kind& kind : row().kinds) {
    for (const auto* rows : {&kind.v4, &kind.v5}) {
      for (const auto* experts : *rows) {
        std::int64_t size = 16;
        for (const auto& [role, key] : experts->keys) {
          if (key.ends_with("[0]") || key.ends_with("[1]")) {
            config[key.substr(0, key.size() - 3)] = {24, 48};
          } else {
            config[key] = size += 8;
          }
        }
      }
    }
  }
  for (const char* key : {"zero_expert_num", "moe_hidden_size", "kv_channels", "num_key_value_heads"}) config[key] = 6;
  for (const char* key : {"num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"}) config[key] = 12;
  config["enable_moe_block"] = true;
  const Model model = describe({.base = scratch_file("formulas.json", config.dump())});
  ASSERT_FALSE(model.experts.empty());
  for (const Experts& experts : model.experts) {
    EXPECT_GT(experts.num_experts, 0);
    for (const auto* list : {&experts.form->v4, &experts.form->v5}) {
      for (const auto& parameter : *list) {
        for (const std::int64_t size : experts.fused_shape(parameter)) EXPECT_GT(size, 0) << parameter.name;
      }
    }
    const bool matrices = !experts.form->per_expert.empty();
    EXPECT_TRUE(!matrices || (experts.hidden > 0 && experts.intermediate > 0));
  }
}

TEST(EveryDenseFamily, DescribesItsLinears) {
  const auto table = model::load_table();
  for (const auto& [type, family] : table->dense) {
    const OrderedJson config{
        {"model_type", type},     {"hidden_size", 64},        {"n_embd", 64},      {"d_model", 64},
        {"num_hidden_layers", 2}, {"num_attention_heads", 4}, {"n_head", 4},       {"num_key_value_heads", 2},
        {"head_dim", 16},         {"intermediate_size", 96},  {"vocab_size", 100}, {"full_attention_interval", 2}};
    const Model model = describe({.base = scratch_file("dense.json", config.dump())});
    ASSERT_TRUE(model.v5) << type;
    EXPECT_EQ(model.v4.has_value(), family->v4.has_value()) << type;
    EXPECT_FALSE(model.v5->modules.empty()) << type;
    EXPECT_TRUE(model.experts.empty());
  }
}

// ---- module-tree files --------------------------------------------------------------------------------------------

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
      if (!test::fs::exists(tree_file(other))) continue;
      expect_tree(*describe({.base = file.string()}).v5, test::read_json(tree_file(other)), name + " -> v5");
      expect_tree(*describe({.base = tree_file(other)}).v4, test::read_json(file), other + " -> v4");
      ++pairs;
    }
  }
  if (pairs == 0) GTEST_SKIP() << "no pair of tree files here";
}

TEST(TreeFiles, ExpertsAndSizes) {
  const std::string file = tree_file("mixtral.v4-4.57.6.json");
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

// ---- config.json alone ----------------------------------------------------------------------------------------------

Model from_config(const std::string& text, const std::string& family = {}) {
  return describe({.base = scratch_file("config.json", text), .family = family});
}

TEST(FromConfig, BothSpellingsOfTheExperts) {
  for (const char* key : {"num_experts", "num_local_experts"}) {
    const Model model =
        from_config(std::string(R"({"model_type": "qwen3_moe", "hidden_size": 40, "moe_intermediate_size": 12,
      "num_hidden_layers": 3, "mlp_only_layers": [1], "decoder_sparse_step": 1, ")") +
                    key + R"(": 8})");
    ASSERT_EQ(model.experts.size(), 2u);
    EXPECT_EQ(model.experts[1].layer, 2);
    EXPECT_EQ(model.experts[1].num_experts, 8);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.2.mlp.experts"), true);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.1.mlp.experts"), false);
    EXPECT_EQ(model.has(Generation::v4, "model.layers.0.mlp.experts.7.up_proj"), true);
    EXPECT_EQ(model.has(Generation::v4, "model.layers.0.mlp.experts.8.up_proj"), false);
    EXPECT_EQ(model.has(Generation::v5, "model.layers.1.mlp.gate_proj"), true);
  }
}

TEST(FromConfig, RulesOfTheLayers) {
  const auto layers = [](const std::string& config) {
    std::vector<std::int64_t> result;
    for (const Experts& experts : from_config(config).experts) result.push_back(experts.layer);
    return result;
  };
  using Layers = std::vector<std::int64_t>;
  EXPECT_EQ(layers(R"({"model_type": "deepseek_v3", "num_hidden_layers": 5, "first_k_dense_replace": 2})"),
            (Layers{2, 3, 4}));
  EXPECT_EQ(
      layers(R"({"model_type": "jamba", "num_hidden_layers": 5, "expert_layer_period": 2, "expert_layer_offset": 1})"),
      (Layers{1, 3}));
  EXPECT_EQ(layers(R"({"model_type": "ernie4_5_moe", "num_hidden_layers": 6, "moe_layer_interval": 2,
                      "moe_layer_start_index": 1, "moe_layer_end_index": 4})"),
            (Layers{1, 3}));
  EXPECT_EQ(layers(R"({"model_type": "llama4_text", "num_hidden_layers": 4, "moe_layers": [1, 3]})"), (Layers{1, 3}));
  EXPECT_EQ(
      layers(
          R"({"model_type": "dots3_note_text", "num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "dense"]})"),
      (Layers{1}));
  // the other generation's key
  EXPECT_EQ(layers(R"({"model_type": "dots3_note_text", "num_hidden_layers": 3, "first_k_dense_replace": 2})"),
            (Layers{2}));
}

TEST(FromConfig, LayersOfDifferentKinds) {
  const Model model = from_config(R"({"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text",
    "num_hidden_layers": 4, "full_attention_interval": 4, "hidden_size": 40, "num_experts": 4, "moe_intermediate_size": 8}})");
  EXPECT_FALSE(model.v4);
  EXPECT_TRUE(model.base_is_v5_only);
  EXPECT_EQ(model.experts.size(), 4u);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.0.linear_attn.out_proj"), true);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.3.self_attn.q_proj"), true);
  EXPECT_EQ(model.has(Generation::v5, "model.language_model.layers.0.self_attn.q_proj"), false);
  // A key that is left out is as the class has it: every fourth layer.
  const Model usual = from_config(R"({"model_type": "qwen3_next", "num_hidden_layers": 4})");
  EXPECT_EQ(usual.has(Generation::v5, "model.layers.0.linear_attn.out_proj"), true);
  EXPECT_EQ(usual.has(Generation::v5, "model.layers.3.linear_attn.out_proj"), false);
}

TEST(FromConfig, AbsurdNumbersAreRefused) {
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 1000000, "num_local_experts": 8})");
            }),
            ErrorCode::MD_FORM);
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 1000000000})");
            }),
            ErrorCode::MD_FORM);
  EXPECT_EQ(code_of([] {
              from_config(R"({"model_type": "mixtral", "num_hidden_layers": 9000, "num_local_experts": 90000})");
            }),
            ErrorCode::MD_FORM);
  const std::string deep = std::string(500, '[') + std::string(500, ']');
  EXPECT_EQ(code_of([&] { from_config(R"({"model_type": "mixtral", "x": )" + deep + "}"); }), ErrorCode::ST_DEPTH);
  EXPECT_TRUE(from_config(R"({"model_type": "mixtral", "num_hidden_layers": -3, "num_local_experts": "many"})")
                  .experts.empty());
}

TEST(FromConfig, FamilyMustAgree) {
  const std::string text = R"({"model_type": "mixtral", "num_hidden_layers": 1})";
  EXPECT_EQ(from_config(text, "mixtral").experts.size(), 1u);
  EXPECT_EQ(code_of([&] { from_config(text, "qwen3_moe"); }), ErrorCode::MD_FAMILY);
  EXPECT_EQ(from_config(R"({"model_type": "my_own_moe", "num_hidden_layers": 1})", "mixtral").experts.size(), 1u);
}

// ---- names -------------------------------------------------------------------------------------------------------

TEST(FromNames, UnknownFamilyNamesNearOnes) {
  try {
    describe({.family = "qwen3moe"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::MD_FAMILY);
    EXPECT_NE(error.detail().expected.find("qwen3_moe"), std::string::npos);
  }
}

TEST(FromNames, PartsOfCompositesAreFoundThroughThem) {
  const Model model =
      describe({.family = "qwen3_omni_moe_text", .names = {"model.language_model.layers.0.mlp.experts"}});
  EXPECT_EQ(model.experts.size(), 1u);
  EXPECT_FALSE(model.notes.empty());
  const Model text = describe({.family = "qwen3_5_moe", .names = {"model.layers.0.mlp.experts.3.up_proj"}});
  ASSERT_EQ(text.experts.size(), 1u);
  EXPECT_EQ(text.experts[0].v5_module, "model.layers.0.mlp.experts");
}

TEST(FromNames, AgreeingFamiliesNeedNoName) {
  const Model model =
      describe({.names = {"model.layers.0.mlp.experts.0.gate_proj", "model.layers.5.mlp.experts.9.down_proj",
                          "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate"}});
  ASSERT_EQ(model.experts.size(), 2u);
  EXPECT_EQ(model.experts[1].layer, 5);
  EXPECT_EQ(model.experts[1].num_experts, 10);
  EXPECT_TRUE(model.num_experts_assumed);
  EXPECT_EQ(model.experts[1].v5_module, "model.layers.5.mlp.experts");
  EXPECT_EQ(model.rename("model.layers.0.mlp.gate", Generation::v4, Generation::v5), "model.layers.0.mlp.gate");
}

TEST(FromNames, DisagreeingFamiliesAreNamed) {
  const Model model = describe({.names = {"model.layers.0.mlp.experts"}});  // gpt_oss stores it the other way round
  EXPECT_TRUE(model.experts.empty());
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_NE(model.notes[0].find("gpt_oss"), std::string::npos);
  // mixtral and phimoe call the router differently
  EXPECT_TRUE(
      describe({.names = {"model.layers.0.block_sparse_moe.experts.0.w1", "model.layers.0.block_sparse_moe.gate"}})
          .experts.empty());
  EXPECT_FALSE(describe({.names = {"model.layers.0.block_sparse_moe.experts.0.w1"}}).experts.empty());
}

TEST(FromNames, DenseNamesAreNoExperts) {
  const Model model = describe({.names = {"model.layers.0.self_attn.q_proj"}});
  EXPECT_TRUE(model.experts.empty());
  EXPECT_EQ(model.locate("model.layers.0.self_attn.q_proj"), std::nullopt);
  EXPECT_EQ(model.rename("model.layers.0.self_attn.q_proj", Generation::v4, Generation::v5),
            "model.layers.0.self_attn.q_proj");
}

TEST(Locate, OddExpertIndicesAreErrors) {
  const Model model =
      describe({.family = "mixtral", .num_experts = 8, .names = {"model.layers.0.block_sparse_moe.experts.0.w1"}});
  const auto at = [&](const std::string& segment) {
    return "model.layers.0.block_sparse_moe.experts." + segment + ".w1";
  };
  for (const char* odd : {"01", "-1", "+1", "8", "99999999999999999999"}) {
    EXPECT_EQ(code_of([&] { model.locate(at(odd)); }), ErrorCode::LO_EXPERT) << odd;
  }
  EXPECT_TRUE(model.locate(at("7")));
  EXPECT_FALSE(model.locate(at("x")));
  EXPECT_FALSE(model.locate("model.layers.1.block_sparse_moe.experts.0.w1"));
  EXPECT_FALSE(model.locate("model.layers.00.block_sparse_moe.experts.0.w1"));
  EXPECT_FALSE(model.locate("model.layers.0.block_sparse_moe.gate"));
}

TEST(UserFamilies, AddAndReplace) {
  const std::string file = scratch_file("families.json", R"({
    "forms": {"f00": {"form": "params", "fused": "w13", "layout": "in,out", "order": "concat gate,up",
                      "params": [["w13", ["E", "H", "2I"]], ["down_proj", ["E", "I", "H"]]]}},
    "families": {"mine": {"v5": {"arch": "Mine", "linears": ["lm_head"], "experts": [
      {"path": "m.layers.{layer}.moe.experts", "block": "m.layers.{layer}.moe", "form": "f00",
       "keys": {"E": "n", "H": "h", "I": "i"}, "moe_layers": ["all"]}]}}}})");
  const Model mine = describe({.family = "mine", .families_file = file, .names = {"m.layers.4.moe.experts"}});
  ASSERT_EQ(mine.experts.size(), 1u);
  EXPECT_TRUE(mine.experts[0].form->v5[0].in_out);
  const Model built_in =
      describe({.family = "mixtral", .families_file = file, .names = {"model.layers.0.mlp.experts"}});
  EXPECT_FALSE(built_in.experts[0].form->v5[0].in_out);  // its f00 is still its own
  EXPECT_EQ(families(file).size(), families().size() + 1);
  EXPECT_EQ(code_of([] {
              describe({.family = "x", .families_file = scratch_file("bad.json", R"({"families": {"x": {"v5": 1}}})")});
            }),
            ErrorCode::MD_FAMILY);
  EXPECT_EQ(code_of([] { describe({.family = "x", .families_file = "/nowhere.json"}); }), ErrorCode::IO_OPEN);
}

// The example of docs/add_a_family.md is a family file that works.
TEST(UserFamilies, TheDocumentedExampleWorks) {
  const std::string page = model::read_text(std::string(PEFT_SOURCE_DIR) + "/docs/add_a_family.md");
  const std::size_t begin = page.find("```json") + 7, end = page.find("```", begin);
  const std::string file = scratch_file("documented.json", page.substr(begin, end - begin));
  const Model model =
      describe({.family = "my_moe", .families_file = file, .names = {"model.layers.0.block.experts.5.w3"}});
  ASSERT_EQ(model.experts.size(), 1u);
  EXPECT_EQ(model.locate("model.layers.0.block.experts.5.w3")->projection, Projection::up);
  EXPECT_EQ(model.experts[0].v5_module, "model.layers.0.mlp.experts");
  EXPECT_EQ(model.rename("model.layers.0.block.gate", Generation::v4, Generation::v5), "model.layers.0.mlp.gate");
}

TEST(FamilyRows, AreReadable) {
  const auto rows = families();
  ASSERT_EQ(rows.size(), 148u);
  const auto mixtral =
      std::find_if(rows.begin(), rows.end(), [](const FamilyRow& row) { return row.model_type == "mixtral"; });
  EXPECT_EQ(mixtral->v5_experts, "model.layers.{layer}.mlp.experts: gate_up_proj [E, 2I, H], down_proj [E, H, I]");
  EXPECT_EQ(mixtral->v4_experts, "model.layers.{layer}.block_sparse_moe.experts.{expert}");
  EXPECT_EQ(mixtral->per_expert_names, "w1 (gate), w3 (up), w2 (down)");
  EXPECT_EQ(mixtral->orientation, "out,in");
  EXPECT_EQ(mixtral->router, "gate.weight (MixtralTopKRouter)");
}

// Measured with transformers 4.57.6 and 5.24.0 on configs with such layers; the default models have none.
TEST(FromConfig, LayersWithoutExpertsHaveTheirMlp) {
  EXPECT_TRUE(model::load_table()->dense_layers.contains("qwen3_omni_moe"));
  for (const auto& [type, linears] : (model::load_table())->dense_layers) {
    SCOPED_TRACE(type);
    const bool is_llama = type.starts_with("llama4");
    const std::string text =
        is_llama
            ? R"("num_hidden_layers": 2, "moe_layers": [1], "interleave_moe_layer_step": 1, "num_local_experts": 4,)"
            : R"("num_hidden_layers": 2, "mlp_only_layers": [0], "decoder_sparse_step": 1, "first_k_dense_replace": 1, "num_experts": 4,
                                           "num_local_experts": 4, "n_routed_experts": 4,)";
    const std::string sizes =
        R"("hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4, "vocab_size": 64)";
    const bool composite = type == "qwen3_vl_moe" || type == "llama4" || type == "qwen3_omni_moe_thinker";
    const std::string body = text + sizes;
    std::string config = composite ? R"("text_config": {)" + body + "}" : body;
    if (type == "qwen3_omni_moe") {  // the talker, narrower, has experts in all layers, whatever its config says
      const std::string talker = R"("text_config": {"hidden_size": 8, "intermediate_size": 4, "vocab_size": 64,)" +
                                 text + R"("num_attention_heads": 4, "moe_intermediate_size": 16})";
      config = R"("talker_config": {)" + talker + R"(}, "thinker_config": {"text_config": {)" + body + "}}";
    }
    const Model model =
        describe({.base = scratch_file("layers.json", R"({"model_type": ")" + type + R"(", )" + config + "}")});
    EXPECT_EQ(model.index->find_known(Generation::v5, "talker.model.layers.0.mlp.gate_proj"), nullptr);
    for (const auto& tree : {model.v4, model.v5}) {
      if (!tree) continue;
      std::vector<std::string> found;
      for (const Module& module : tree->modules) {
        if (module.name.ends_with("mlp.gate_proj") || module.name.ends_with("feed_forward.gate_proj"))
          found.push_back(module.name);
        if (found.size() == 1 && found.back() == module.name && !is_llama) {
          EXPECT_EQ(module.weight, (std::vector<std::int64_t>{48, 32}));
        }
      }
      ASSERT_EQ(found.size(), 1u);
      EXPECT_NE(found.front().find("layers.0."), std::string::npos) << found.front();
    }
  }
}

}  // namespace
}  // namespace peft
