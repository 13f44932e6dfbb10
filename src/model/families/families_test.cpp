#include "model/families/families.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>

#include "model/path.h"
#include "peft/error.h"
#include "peft/model.h"
#include "support/model_files.h"
#include "test_paths.h"

namespace peft::model {
namespace {

using test::code_of;
using test::scratch_file;

const Family& family(const std::string& type) { return *load_table()->families.at(type); }

std::vector<std::string> names_of(const ExpertsForm& form) {
  std::vector<std::string> names;
  for (const auto& module : form.per_expert) names.push_back(std::string(name(module.projection)) + "=" + module.name);
  return names;
}

TEST(Families, HasEveryRowOfTheFile) {
  const auto table = load_table();
  EXPECT_EQ(table->families.size(), 97u);
  EXPECT_EQ(table->dense.size(), 51u);
}

TEST(Families, PerExpertNamesComeFromModules) {
  const Kind& mixtral = family("mixtral").kinds.at(0);
  EXPECT_EQ(names_of(mixtral.form), (std::vector<std::string>{"gate=w1", "up=w3", "down=w2"}));
  EXPECT_FALSE(mixtral.form.per_expert_on_disk_only);
  EXPECT_EQ(mixtral.v4_path, "model.layers.{layer}.block_sparse_moe.experts");
  EXPECT_EQ(mixtral.v5_path, "model.layers.{layer}.mlp.experts");
  const Kind& nllb = family("nllb-moe").kinds.at(0);
  EXPECT_EQ(names_of(nllb.form), (std::vector<std::string>{"up=fc1", "down=fc2"}));
  EXPECT_EQ(nllb.form.expert_name, "expert_{expert}");
}

TEST(Families, PerExpertNamesComeFromCheckpointsWhereNoClassHasThem) {
  const Kind& lfm2 = family("lfm2_moe").kinds.at(0);
  EXPECT_EQ(names_of(lfm2.form), (std::vector<std::string>{"gate=w1", "up=w3", "down=w2"}));
  EXPECT_TRUE(lfm2.form.per_expert_on_disk_only);
  EXPECT_EQ(lfm2.v4_path, "model.layers.{layer}.feed_forward.experts");
  const Kind& nemotron = family("nemotron_h").kinds.at(0);
  EXPECT_EQ(names_of(nemotron.form), (std::vector<std::string>{"up=up_proj", "down=down_proj"}));
  EXPECT_EQ(nemotron.v4_path, "backbone.layers.{layer}.mixer.experts");
  const Kind& vision = family("dots3_note").kinds.at(1);
  EXPECT_EQ(names_of(vision.form), (std::vector<std::string>{"gate=fc1", "up=fc3", "down=fc2"}));
}

TEST(Families, FusedParameters) {
  const ExpertsForm& oss = family("gpt_oss").kinds.at(0).form;
  ASSERT_EQ(oss.v5.size(), 4u);
  EXPECT_TRUE(oss.v5[0].interleaved);
  EXPECT_TRUE(oss.v5[0].in_out);
  EXPECT_EQ(oss.v5[0].is_transposed, true);
  EXPECT_EQ(oss.v4[0].is_transposed, std::nullopt);
  EXPECT_TRUE(oss.v5[1].projections.empty());  // the bias
  EXPECT_TRUE(oss.v5[2].in_out);
  EXPECT_FALSE(oss.v5[2].interleaved);
  const Kind& granite = family("granitemoe").kinds.at(0);
  EXPECT_EQ(granite.v4_path, "model.layers.{layer}.block_sparse_moe.experts");
  ASSERT_EQ(granite.form.v4.size(), 2u);
  EXPECT_EQ(granite.form.v4[0].module, "../input_linear");
  EXPECT_EQ(granite.form.v4[1].projections, std::vector{Projection::down});
  EXPECT_FALSE(granite.form.v4[1].in_out);
  const Kind& aria = family("aria").kinds.at(0);
  EXPECT_EQ(aria.v4_path, "model.language_model.layers.{layer}.mlp.experts");
  EXPECT_EQ(aria.form.v4[0].module, "fc1");
  EXPECT_TRUE(aria.form.v4[1].in_out);
  for (const auto& parameter : family("dbrx").kinds.at(0).form.v5) EXPECT_TRUE(parameter.projections.empty());
}

// The layout the table states, where it does, is the one the dimensions give.
TEST(Families, LayoutAgreesWithDimensions) {
  for (const auto& [type, row] : load_table()->families) {
    for (const Kind& kind : row->kinds) {
      for (const ExpertsRow* experts : kind.v5) {
        if (experts->form.layout.empty()) continue;
        for (const auto& parameter : kind.form.v5) {
          if (parameter.projections.size() != 2) continue;
          EXPECT_EQ(parameter.in_out, experts->form.layout == "in,out") << type;
        }
      }
    }
  }
}

TEST(Families, EveryMatrixPerExpertHasARole) {
  for (const auto& [type, row] : load_table()->families) {
    ASSERT_FALSE(row->kinds.empty()) << type;
    for (const Kind& kind : row->kinds) {
      const bool attention = kind.v5_path.find("self_attention") != std::string::npos;  // jetmoe: neither gate nor up
      for (const auto* list : {&kind.form.v4, &kind.form.v5}) {
        for (const auto& parameter : *list) {
          EXPECT_TRUE(parameter.dims.size() != 3 || attention || !parameter.projections.empty())
              << type << parameter.name;
        }
      }
      const std::size_t projections = kind.form.per_expert.size();
      EXPECT_TRUE(projections == 0 || projections == 2 || projections == 3) << type;
    }
  }
}

std::string renaming(const std::string& type, const std::string& v4) {
  for (const Renaming& rule : family(type).renamings) {
    if (rule.v4 == v4) return rule.v5;
  }
  return {};
}

TEST(Families, RenamingsAreDerived) {
  EXPECT_EQ(renaming("mixtral", "model.layers.{layer}.block_sparse_moe"), "model.layers.{layer}.mlp");
  EXPECT_EQ(renaming("phimoe", "model.layers.{layer}.block_sparse_moe.gate"), "model.layers.{layer}.mlp.router");
  EXPECT_EQ(renaming("granitemoe", "model.layers.{layer}.block_sparse_moe.router.layer"),
            "model.layers.{layer}.block_sparse_moe.router");
  EXPECT_EQ(renaming("nemotron_h", "backbone.layers.{layer}"), "model.layers.{layer}");
  EXPECT_TRUE(family("qwen3_moe").renamings.empty());
}

TEST(Families, NearNames) {
  EXPECT_EQ(near_types(*load_table(), "qwen3moe").front(), "qwen3_moe");
  EXPECT_TRUE(near_types(*load_table(), "zzzzzzzzzzzz").empty());
}

TEST(Families, DumpForReading) {
  if (std::getenv("PEFT_DUMP_FAMILIES") == nullptr) GTEST_SKIP() << "set PEFT_DUMP_FAMILIES to print the derived rows";
  for (const auto& [type, row] : load_table()->families) {
    for (const Kind& kind : row->kinds) {
      std::cout << type << "\n  v4 " << kind.v4_path << "\n  v5 " << kind.v5_path << "\n ";
      for (const auto& each : names_of(kind.form)) std::cout << " " << each;
      std::cout << (kind.form.per_expert_on_disk_only ? " (disk)" : "") << "\n";
    }
    for (const Renaming& rule : row->renamings) std::cout << "    " << rule.v4 << " <-> " << rule.v5 << "\n";
  }
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

}  // namespace
}  // namespace peft::model
