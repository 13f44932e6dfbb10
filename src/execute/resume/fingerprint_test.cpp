// Whatever changes the bytes of an output changes its fingerprint.
#include "execute/resume/fingerprint.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "support/random_plan.h"

namespace peft::execution {
namespace {

using Change = std::function<void(Plan&)>;

TEST(Fingerprint, ChangesWithEverythingThatMatters) {
  PlanBuilder builder(1);
  const View a = builder.source(Dtype::bf16, 4, 8, false), b = builder.source(Dtype::bf16, 4, 8, false);
  builder.output("t", Dtype::bf16, 4, 8).blocks = {{0, 0, 1, a, 1}};
  Plan plan = builder.make();
  plan.files[0].tensors[0].merge = Merge{.updates = {{.target = a, .a = a, .b = b}}};
  plan.files[0].tensors[0].blocks[0].scales = Scales{.grid = a};
  plan.texts = {{"config.json", "{}"}};
  plan.copies = {{"a", "b"}};
  const auto tensor = [](Plan& p) -> PlannedTensor& { return p.files[0].tensors[0]; };
  const auto update = [&](Plan& p) -> Update& { return tensor(p).merge->updates[0]; };
  const Change changes[] = {
      [](Plan&) {},
      [&](Plan& p) { tensor(p).name += "x"; },
      [&](Plan& p) { tensor(p).dtype = Dtype::f16; },
      [&](Plan& p) { tensor(p).shape = {32}; },
      [&](Plan& p) { tensor(p).must_be_finite = true; },
      [&](Plan& p) { tensor(p).column_group = 3; },
      [&](Plan& p) { tensor(p).blocks[0].source = b; },
      [&](Plan& p) { tensor(p).blocks[0].scale = 0.5; },
      [&](Plan& p) { tensor(p).blocks[0].col_step = 2; },
      [&](Plan& p) { tensor(p).blocks[0].row_shift = 2; },
      [&](Plan& p) { tensor(p).blocks[0].col_shift = 2; },
      [&](Plan& p) {
        tensor(p).blocks[0].members = {{0, 0, 8}};
      },
      [&](Plan& p) { tensor(p).blocks[0].scales->cell_rows = 2; },
      [&](Plan& p) { tensor(p).blocks[0].scales.reset(); },
      [&](Plan& p) { tensor(p).blocks.clear(); },
      [&](Plan& p) { tensor(p).merge.reset(); },
      [&](Plan& p) { tensor(p).merge->mode = MergeMode::peft; },
      [&](Plan& p) { tensor(p).merge->base_dtype = Dtype::f32; },
      [&](Plan& p) { update(p).scale = 2; },
      [&](Plan& p) { update(p).a = b; },
      [&](Plan& p) { update(p).magnitude = b; },
      [&](Plan& p) { update(p).delta_is_rounded = true; },
      [&](Plan& p) { update(p).target = b; },
      [&](Plan& p) { p.files[0].name = "other"; },
      [&](Plan& p) { p.files[0].metadata["x"] = "y"; },
      [&](Plan& p) { p.files.push_back(p.files[0]); },
      [&](Plan& p) { p.texts[0].second = "{ }"; },
      [&](Plan& p) { p.copies.clear(); },
  };
  std::set<std::string> seen;
  for (const Change& change : changes) {
    Plan other = plan;
    change(other);
    EXPECT_TRUE(seen.insert(fingerprint(other, true)).second) << "change " << seen.size();
  }
  Plan same = plan;  // what is for people only
  same.warnings = {"x"};
  same.steps = {"y"};
  same.copies[0].second = "elsewhere/b";
  EXPECT_EQ(fingerprint(same, true), fingerprint(plan, true));
}

TEST(Fingerprint, ChangesWithTheDataOfASource) {
  const auto of_seed = [](std::uint32_t seed) {
    PlanBuilder builder(seed);
    const View view = builder.source(Dtype::bf16, 100, 100, false);
    builder.output("t", Dtype::bf16, 100, 100).blocks = {{0, 0, 1, view, 1}};
    return fingerprint(builder.make(), false);
  };
  EXPECT_EQ(of_seed(1), of_seed(1));
  EXPECT_NE(of_seed(1), of_seed(2));
}

}  // namespace
}  // namespace peft::execution
