#include "verbs/convert.h"

#include <gtest/gtest.h>

#include "peft/error.h"
#include "peft/verbs.h"
#include "support/golden_root.h"

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
  for (const PlannedTensor& tensor : plan.files[0].tensors) stacked += tensor.blocks.size() > 1 ? 1 : 0;
  EXPECT_EQ(stacked, 8u) << "lora_A and lora_B of gate_up_proj and down_proj, in two layers";
  EXPECT_LT(plan.files[0].tensors.size(), input.adapter.weights->tensors().size());
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
