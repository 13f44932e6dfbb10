#include "cli/combine_plans.h"

#include <gtest/gtest.h>

namespace peft::cli {
namespace {

Plan small_plan(Exactness exactness) {
  Plan plan;
  plan.sources.resize(2);
  PlannedTensor tensor{.name = "t", .shape = {1, 1}, .rows = 1, .cols = 1, .blocks = {}};
  tensor.blocks.push_back(Block{.source = View{.source = 1}});
  plan.files.push_back({.name = "adapter_model.safetensors", .tensors = {tensor}});
  plan.texts.emplace_back("adapter_config.json", "{}");
  plan.copies.emplace_back("README.md", "/somewhere/README.md");
  plan.steps = {"step"};
  plan.warnings = {"careful"};
  plan.exactness = exactness;
  plan.bytes_in = 10;
  plan.bytes_out = 20;
  plan.peak_memory = exactness == Exactness::bit_exact ? 7 : 5;
  return plan;
}

TEST(CombinePlans, parts_go_to_their_folders_and_keep_their_sources) {
  std::vector<std::pair<std::string, Plan>> parts;
  parts.emplace_back("", small_plan(Exactness::bit_exact));
  parts.emplace_back("b", small_plan(Exactness::rounded));
  const Plan whole = combine_plans(std::move(parts));
  ASSERT_EQ(whole.sources.size(), 4u);
  ASSERT_EQ(whole.files.size(), 2u);
  EXPECT_EQ(whole.files[0].name, "adapter_model.safetensors");
  EXPECT_EQ(whole.files[1].name, "b/adapter_model.safetensors");
  EXPECT_EQ(whole.files[0].tensors[0].blocks[0].source.source, 1u);
  EXPECT_EQ(whole.files[1].tensors[0].blocks[0].source.source, 3u);
  EXPECT_EQ(whole.texts[1].first, "b/adapter_config.json");
  EXPECT_EQ(whole.copies[1].first, "b/README.md");
  EXPECT_EQ(whole.copies[1].second, "/somewhere/README.md");
  EXPECT_EQ(whole.warnings, (std::vector<std::string>{"careful", "b: careful"}));
  EXPECT_EQ(whole.steps, (std::vector<std::string>{"step", "b: step"}));
  EXPECT_EQ(whole.exactness, Exactness::rounded);
  EXPECT_EQ(whole.bytes_in, 20u);
  EXPECT_EQ(whole.bytes_out, 40u);
  EXPECT_EQ(whole.peak_memory, 7u);
}

}  // namespace
}  // namespace peft::cli
