// Model of every family: locating, renaming, kinds and shapes.
#include "peft/model.h"

#include <gtest/gtest.h>

#include <set>

#include "model/families/families.h"
#include "model/families/index.h"
#include "model/path.h"
#include "support/model_files.h"

namespace peft {
namespace {

using model::Family;
using model::Kind;
using model::OrderedJson;
using model::PathTemplate;
using test::code_of;
using test::scratch_file;

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

}  // namespace
}  // namespace peft
