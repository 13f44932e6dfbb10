#include "verbs/load.h"

#include <gtest/gtest.h>

#include "peft/error.h"
#include "support/golden_root.h"

namespace peft::verbs {
namespace {

std::string adapter(const std::string& name) {
  return (test::golden_root() / "consumers" / "mixtral" / name / "adapter").string();
}

TEST(Load, adapters_without_a_base_are_described_by_all_their_names) {
  const std::vector<AdapterToLoad> adapters = {{adapter("perexpert"), {}}, {adapter("perexpert-router"), {}}};
  const std::vector<Input> inputs = load_together(adapters);
  ASSERT_EQ(inputs.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    InputOptions alone;
    alone.further_names = module_names(adapters[1 - i].path, {});
    const Input expected = load(adapters[i].path, alone);
    EXPECT_EQ(inputs[i].model.model_type, expected.model.model_type);
    EXPECT_EQ(inputs[i].adapter.folder, expected.adapter.folder);
    EXPECT_EQ(inputs[i].reading.factors.factors.size(), expected.reading.factors.factors.size());
  }
}

TEST(Load, with_a_base_each_is_read_as_if_alone) {
  InputOptions options;
  options.base = (test::golden_root() / "models" / "consumer-mixtral").string();
  const std::vector<AdapterToLoad> adapters = {{adapter("fused"), options}, {adapter("perexpert"), options}};
  const std::vector<Input> inputs = load_together(adapters);
  ASSERT_EQ(inputs.size(), 2u);
  EXPECT_EQ(inputs[0].reading.layout, Layout::peft_fused);
  EXPECT_EQ(inputs[1].reading.layout, Layout::peft_per_expert);
  EXPECT_EQ(inputs[1].model.model_type, "mixtral");
}

TEST(Load, the_first_that_cannot_be_opened_is_named) {
  const std::vector<AdapterToLoad> adapters = {{"/nowhere/a", {}}, {"/nowhere/b", {}}};
  try {
    load_together(adapters);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.detail().file.find("/nowhere/a"), 0u) << error.what();
  }
}

}  // namespace
}  // namespace peft::verbs
