// Every row of the section "runtime" of data/families.json, joined with the row of its family.
#include "model/families/runtime_table.h"

#include <gtest/gtest.h>

namespace peft::model {
namespace {

TEST(RuntimeTable, knows_the_types_that_run) {
  const std::vector<std::string> types = {"gpt_oss", "llama",       "mixtral",          "qwen2",    "qwen2_moe",
                                          "qwen3",   "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe"};
  EXPECT_EQ(runtime_types(), types);
  EXPECT_EQ(find_runtime("gpt2"), nullptr);
}

TEST(RuntimeTable, every_row_finds_its_classes_and_paths) {
  for (const std::string& type : runtime_types()) {
    SCOPED_TRACE(type);
    const RuntimeRow& row = *find_runtime(type);
    EXPECT_EQ(row.model_type, type);
    EXPECT_FALSE(row.class_prefix.empty());
    EXPECT_EQ(row.class_prefix.find("For"), std::string::npos);
    EXPECT_EQ(row.body, row.section.empty() ? "model" : "model.language_model");
    if (!row.experts) continue;
    const RuntimeExperts& experts = *row.experts;
    EXPECT_EQ(experts.row->class_name, row.class_prefix + "Experts");
    EXPECT_EQ(experts.router_class, row.class_prefix + "TopKRouter");
    EXPECT_EQ(experts.row->path, row.body + ".layers.{layer}.mlp.experts");
    // The runtime builds these two parameters, and a bias of each where there is one.
    EXPECT_EQ(experts.row->form.params.size(), experts.bias ? 4U : 2U);
    EXPECT_EQ(experts.row->form.params.front().name, "gate_up_proj");
    EXPECT_TRUE(experts.row->keys.contains("I"));
    EXPECT_EQ(experts.row->shared.empty(), !experts.row->keys.contains("S"));
  }
}

TEST(RuntimeTable, takes_what_the_row_of_the_family_says) {
  const RuntimeRow& gpt_oss = *find_runtime("gpt_oss");
  EXPECT_TRUE(gpt_oss.experts->in_out && gpt_oss.experts->bias && gpt_oss.experts->router_bias);
  EXPECT_TRUE(gpt_oss.experts->row->form.interleaved);
  EXPECT_EQ(gpt_oss.experts->router, "router");
  const RuntimeRow& mixtral = *find_runtime("mixtral");
  EXPECT_FALSE(mixtral.experts->in_out || mixtral.experts->bias || mixtral.experts->router_bias);
  EXPECT_EQ(mixtral.experts->router, "gate");
  EXPECT_EQ(find_runtime("qwen3_5_moe")->section, "text_config");
  EXPECT_EQ(find_runtime("llama")->class_prefix, "Llama");
}

}  // namespace
}  // namespace peft::model
