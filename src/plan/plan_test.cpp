#include "peft/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
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
  tensor.blocks.push_back(
      Block{.source = View{.source = 1}, .members = {{0, 0, Origin::kZeros}, {1, 3, 5}, {0, 4, 6}}});
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
  EXPECT_EQ(whole.files[1].tensors[0].blocks[1].source.source, 3u);
  EXPECT_EQ(whole.files[1].tensors[0].blocks[1].members,
            (std::vector<Origin>{{0, 0, Origin::kZeros}, {3, 3, 5}, {2, 4, 6}}));
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

// Tensors "a" BF16 [2, 3], "b" BF16 [2, 3] and "c" F32 [1].
class CostTest : public testing::Test {
 protected:
  CostTest() {
    const FileLayout layout = layout_file(
        std::vector<NewTensor>{{"a", Dtype::bf16, {2, 3}}, {"b", Dtype::bf16, {2, 3}}, {"c", Dtype::f32, {1}}});
    image_.resize(layout.file_bytes());
    std::memcpy(image_.data(), layout.head.data(), layout.head.size());
    header_bytes_ = layout.head.size();
    plan_.sources = {TensorFile::parse(image_, "source"), TensorFile::parse(image_, "other")};
    plan_.texts.emplace_back("adapter_config.json", "{\"r\": 8}");
  }
  View view(std::uint32_t source, const char* name) const {
    const TensorFile& file = *plan_.sources[source];
    return {source, static_cast<std::uint32_t>(file.find(name) - file.tensors().data()), 0, 1, 1, 1, 1};
  }

  std::vector<std::byte> image_;
  std::uint64_t header_bytes_ = 0;
  Plan plan_;
};

TEST_F(CostTest, counts_each_source_tensor_once) {
  PlannedTensor tensor{.name = "t", .dtype = Dtype::bf16, .shape = {2, 5}, .rows = 2, .cols = 5};
  tensor.blocks = {Block{.source = view(0, "a")}, Block{.source = view(0, "a")}};
  plan_.files = {{.name = "f", .tensors = {tensor}}};
  EXPECT_EQ(bytes_read(plan_), 12u);
  const View b = view(0, "b");
  plan_.files[0].tensors[0].blocks.push_back(Block{.source = view(0, "a")});
  plan_.files[0].tensors[0].blocks.back().members = {{0, view(0, "a").tensor, 0}, {0, b.tensor, 0}};
  EXPECT_EQ(bytes_read(plan_), 24u) << "members";
  Update update;
  update.a = view(1, "c");
  plan_.files[0].tensors[0].merge = Merge{.updates = {update}};
  EXPECT_EQ(bytes_read(plan_), 28u) << "a factor; this b has no rows and is not read";
}

TEST_F(CostTest, is_what_will_be_written_and_held) {
  PlannedTensor tensor{.name = "t", .dtype = Dtype::bf16, .shape = {2, 3}, .rows = 2, .cols = 3};
  tensor.blocks = {Block{.source = view(1, "b")}};
  plan_.files = {{.name = "f", .tensors = {tensor}}, {.name = "g", .tensors = {}}};
  plan_.bytes_in = plan_.bytes_out = plan_.peak_memory = 7;
  const std::vector<FileLayout> layouts = set_cost(plan_);
  ASSERT_EQ(layouts.size(), 2u);
  EXPECT_EQ(layouts[0].data_bytes, 12u);
  EXPECT_EQ(plan_.bytes_in, 12u);
  EXPECT_EQ(plan_.bytes_out, layouts[0].head.size() + 12 + layouts[1].head.size() + 8);
  EXPECT_EQ(plan_.peak_memory, kMaxStagingBytes + layouts[0].head.size() + layouts[1].head.size() + 2 * header_bytes_);
}

}  // namespace
}  // namespace peft
