#include "layout/forms.h"

#include <gtest/gtest.h>

namespace peft::layout {
namespace {

// The table of layouts.md, section 0: storage, attribute, and what each generation writes.
struct Row {
  std::string_view model;
  bool in_out;
  std::optional<bool> is_transposed;
  Orientation v0_18, v0_19_0, current;
};
constexpr auto kNatural = Orientation::natural, kReversed = Orientation::reversed;
const Row kRows[] = {
    {"v5 mixtral, qwen3_moe, ...", false, false, kReversed, kReversed, kNatural},
    {"v5 gpt_oss", true, true, kNatural, kReversed, kNatural},
    {"v4 gpt_oss, llama4", true, std::nullopt, kNatural, kNatural, kReversed},
    {"classes without the attribute, [E, out, in]", false, std::nullopt, kReversed, kReversed, kNatural},
};

TEST(FusedForms, EveryGenerationOnEveryStorage) {
  for (const Row& row : kRows) {
    ExpertsForm::Fused parameter;
    parameter.in_out = row.in_out;
    parameter.is_transposed = row.is_transposed;
    EXPECT_EQ(orientation_of(Layout::peft_fused_0_18, parameter), row.v0_18) << row.model;
    EXPECT_EQ(orientation_of(Layout::peft_fused_0_19_0, parameter), row.v0_19_0) << row.model;
    EXPECT_EQ(orientation_of(Layout::peft_fused, parameter), row.current) << row.model;
    EXPECT_EQ(orientation_of(Layout::unsloth_grouped, parameter), row.current) << row.model;
  }
}

TEST(FusedForms, VersionsWriteTheirLayout) {
  EXPECT_EQ(layout_of({0, 17, 1}), Layout::peft_fused_0_18);
  EXPECT_EQ(layout_of({0, 18, 1}), Layout::peft_fused_0_18);
  EXPECT_EQ(layout_of({0, 19, 0}), Layout::peft_fused_0_19_0);
  EXPECT_EQ(layout_of({0, 19, 1}), Layout::peft_fused);
  EXPECT_EQ(layout_of({0, 21, 2}), Layout::peft_fused);
}

}  // namespace
}  // namespace peft::layout
