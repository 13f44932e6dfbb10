#include "peft/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace peft {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string text_of(const Plan& plan) {
  std::ostringstream out;
  out << plan;
  return out.str();
}

Plan example() {
  Plan plan;
  plan.files.push_back({"adapter_model.safetensors",
                        {{"a", Dtype::bf16, {4, 1000}, 4, 1000, {}}, {"b", Dtype::bf16, {2}, 1, 2, {}}},
                        {}});
  plan.texts.emplace_back("adapter_config.json", std::string(1234, ' '));
  plan.copies.emplace_back("README.md", "/in/README.md");
  plan.exactness = Exactness::value_exact;
  plan.steps = {"gate_up_proj: 48 layers (value-exact)"};
  plan.bytes_in = 805'306'368;
  plan.bytes_out = 1'000;
  plan.peak_memory = 64 << 20;
  return plan;
}

TEST(PrintPlan, SaysWhatIsWrittenAndHow) {
  const std::string text = text_of(example());
  EXPECT_THAT(text, HasSubstr("adapter_model.safetensors: 2 tensors, 8,"));
  EXPECT_THAT(text, HasSubstr("adapter_config.json: 1,234 bytes (1.2 KiB)"));
  EXPECT_THAT(text, HasSubstr("README.md: copy of /in/README.md"));
  EXPECT_THAT(text, HasSubstr("gate_up_proj: 48 layers (value-exact)"));
  EXPECT_THAT(text, HasSubstr("exactness: value-exact ("));
  EXPECT_THAT(text,
              HasSubstr("in: 805,306,368 bytes (768 MiB), out: 1000 bytes, peak memory: 67,108,864 bytes (64.0 MiB)"));
  EXPECT_THAT(text, Not(HasSubstr("warnings")));
}

TEST(PrintPlan, SizeOfAFileIsTheSizeItWillHave) {
  Plan plan = example();
  const FileLayout layout =
      layout_file(std::vector<NewTensor>{{"a", Dtype::bf16, {4, 1000}}, {"b", Dtype::bf16, {2}}}, {});
  std::string bytes = std::to_string(layout.file_bytes());
  bytes.insert(bytes.size() - 3, ",");
  EXPECT_THAT(text_of(plan), HasSubstr("2 tensors, " + bytes + " bytes"));
}

TEST(PrintPlan, FitsOneScreen) {
  Plan plan = example();
  for (int i = 0; i < 1000; ++i) {
    plan.files.push_back(plan.files[0]);
    plan.steps.push_back("step");
    plan.warnings.push_back("warning");
  }
  const std::string text = text_of(plan);
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 50);
  EXPECT_THAT(text, HasSubstr("... and 989 more"));  // of 1001 files and steps
  EXPECT_THAT(text, HasSubstr("... and 988 more"));  // of 1000 warnings
}

TEST(PrintPlan, EscapesWhatComesFromFiles) {
  Plan plan = example();
  plan.warnings.push_back("key \x1b[31mred");
  EXPECT_THAT(text_of(plan), Not(HasSubstr("\x1b")));
}

TEST(ExactnessName, IsTheOneOfTheDocuments) {
  EXPECT_EQ(name(Exactness::bit_exact), "bit-exact");
  EXPECT_EQ(name(Exactness::value_exact), "value-exact");
  EXPECT_EQ(name(Exactness::rounded), "rounded");
  EXPECT_EQ(name(Exactness::lossy), "lossy");
}

Plan small_plan(Exactness exactness) {
  Plan plan;
  plan.sources.resize(2);
  PlannedTensor tensor{.name = "t", .shape = {1, 1}, .rows = 1, .cols = 1, .blocks = {}};
  tensor.blocks.push_back(Block{.source = View{.source = 1}, .scales = Scales{.grid = View{.source = 0}}});
  Update whole, bias;
  whole.a = View{.source = 1};
  whole.b = View{.source = 1, .rows = 1};
  whole.magnitude = View{.source = 0};
  bias.a = View{.source = 1};
  tensor.merge = Merge{.updates = {whole, bias}};
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

TEST(AppendPlan, PartsGoToTheirFoldersAndKeepTheirSources) {
  Plan whole;
  append(whole, small_plan(Exactness::bit_exact));
  append(whole, small_plan(Exactness::rounded), "b");
  ASSERT_EQ(whole.sources.size(), 4u);
  ASSERT_EQ(whole.files.size(), 2u);
  EXPECT_EQ(whole.files[0].name, "adapter_model.safetensors");
  EXPECT_EQ(whole.files[1].name, "b/adapter_model.safetensors");
  EXPECT_EQ(whole.files[0].tensors[0].blocks[0].source.source, 1u);
  EXPECT_EQ(whole.files[1].tensors[0].blocks[0].source.source, 3u);
  EXPECT_EQ(whole.files[1].tensors[0].blocks[0].scales->grid.source, 2u);
  const std::vector<Update>& updates = whole.files[1].tensors[0].merge->updates;
  EXPECT_EQ(updates[0].a.source, 3u);
  EXPECT_EQ(updates[0].b.source, 3u);
  EXPECT_EQ(updates[0].magnitude->source, 2u);
  EXPECT_EQ(updates[1].a.source, 3u);
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
}  // namespace peft
