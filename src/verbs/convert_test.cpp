#include "verbs/convert.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "peft/error.h"
#include "peft/execute.h"
#include "peft/verbs.h"
#include "plan/members.h"
#include "support/golden_root.h"
#include "support/test_files.h"

namespace peft {
namespace {

InputOptions with_base() {
  InputOptions options;
  options.base = (test::golden_root() / "models" / "consumer-mixtral").string();
  return options;
}
std::string adapter(const std::string& name) {
  return (test::golden_root() / "consumers" / "mixtral" / name / "adapter").string();
}

TEST(Convert, an_adapter_that_has_the_layout_is_copied) {
  const Input input = load(adapter("perexpert"), with_base());
  ConvertOptions options;
  options.to = Layout::peft_per_expert;
  const Plan plan = plan_convert(input, options);
  EXPECT_EQ(plan.exactness, Exactness::bit_exact);
  ASSERT_EQ(plan.files.size(), 1u);
  EXPECT_EQ(plan.files[0].tensors.size(), input.adapter.weights->tensors().size());
  for (const PlannedTensor& tensor : plan.files[0].tensors)
    EXPECT_NE(input.adapter.weights->find(tensor.name), nullptr) << tensor.name;
}

TEST(Convert, experts_of_one_layer_become_one_pair_of_each_parameter) {
  const Input input = load(adapter("perexpert"), with_base());
  const Plan plan = plan_convert(input, {});
  ASSERT_EQ(plan.files.size(), 1u);
  std::size_t stacked = 0;
  for (const PlannedTensor& tensor : plan.files[0].tensors) stacked += plan::count_views(tensor) > 1 ? 1 : 0;
  EXPECT_EQ(stacked, 8u) << "lora_A and lora_B of gate_up_proj and down_proj, in two layers";
  EXPECT_LT(plan.files[0].tensors.size(), input.adapter.weights->tensors().size());
}

std::map<std::string, std::string> files_in(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file())
      files[entry.path().lexically_relative(folder).string()] = safetensors::read_text(entry.path().string());
  }
  return files;
}

// Several adapters in one step: all of their folders appear, or none.
TEST(Convert, plans_of_several_adapters_are_executed_as_one) {
  const safetensors::TestFolder folder;
  struct Conversion {
    const char *name, *adapter;
    Layout to;
  };
  constexpr Conversion kConversions[] = {{"fused", "perexpert", Layout::peft_fused},
                                         {"apart", "fused", Layout::peft_per_expert},
                                         {"grouped", "perexpert", Layout::unsloth_grouped},
                                         {"again", "fused", Layout::peft_fused}};
  Plan whole;
  std::uint64_t bytes_out = 0;
  for (const auto& [name, source, to] : kConversions) {
    ConvertOptions options;
    options.to = to;
    const Plan plan = plan_convert(load(adapter(source), with_base()), options);
    bytes_out += plan.bytes_out;
    execute(plan, folder / (std::string("one-by-one-") + name), {.sync = false});
    append(whole, plan, name);
  }
  EXPECT_EQ(whole.bytes_out, bytes_out);
  const std::uint64_t bytes_in = whole.bytes_in;
  set_cost(whole);
  EXPECT_EQ(whole.bytes_out, bytes_out);
  EXPECT_EQ(whole.bytes_in, bytes_in);
  execute(whole, folder / "all", {.threads = 2, .sync = false});
  for (const auto& conversion : kConversions) {
    const auto expected = files_in(folder / (std::string("one-by-one-") + conversion.name));
    EXPECT_GE(expected.size(), 2u);
    EXPECT_TRUE(files_in(folder / (std::string("all/") + conversion.name)) == expected) << conversion.name;
  }
}

TEST(Convert, a_config_alone_needs_a_model) {
  ConvertOptions options;
  EXPECT_THROW(convert_config(adapter("perexpert"), options), Error);
  options.input = with_base();
  const ConfigConversion conversion = convert_config(adapter("perexpert"), options);
  EXPECT_NE(conversion.before, conversion.after);
  EXPECT_NE(conversion.after.find("\"target_parameters\": [\n    \"down_proj\",\n    \"gate_up_proj\""),
            std::string::npos)
      << conversion.after;
}

}  // namespace
}  // namespace peft
