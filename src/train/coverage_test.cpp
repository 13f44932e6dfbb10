#include "train/coverage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two layers with three experts each, whose names a dense part has too.
struct TinyModel {
  TinyModel() {
    form.per_expert = {{Projection::gate, "gate_proj"}, {Projection::up, "up_proj"}, {Projection::down, "down_proj"}};
    form.v5.resize(2);
    form.v5[0].name = "gate_up_proj", form.v5[0].projections = {Projection::gate, Projection::up};
    form.v5[1].name = "down_proj", form.v5[1].projections = {Projection::down};
    for (const std::int64_t layer : {0, 1}) {
      Experts experts;
      experts.form = &form, experts.num_experts = 3, experts.layer = layer;
      experts.v5_module = "model.layers." + std::to_string(layer) + ".mlp.experts";
      model.experts.push_back(experts);
    }
  }
  static Target target(const std::string& name, const std::string& pattern) {
    Target target;
    target.name = name, target.pattern = pattern, target.rank = 4, target.scaling = 0.5;
    target.a = {4, 5}, target.b = {7, 4}, target.shape = {7, 5};
    return target;
  }
  ExpertsForm form;
  Model model;
  ModuleTree tree;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::CF_TARGET);
    return error.what();
  }
  return "no error";
}

TEST(Coverage, alike_targets_are_one_row) {
  TinyModel tiny;
  ResolvedTargets resolved;
  resolved.targets = {TinyModel::target("model.layers.0.self_attn.q_proj", "q_proj"),
                      TinyModel::target("model.layers.11.self_attn.q_proj", "q_proj")};
  resolved.targets.back().rank = 8;
  const auto coverage = coverage_of({}, resolved, tiny.tree, tiny.model);
  ASSERT_EQ(coverage.rows.size(), 1U);
  EXPECT_EQ(coverage.rows[0].name, "model.layers.*.self_attn.q_proj");
  EXPECT_EQ(coverage.rows[0].layers, 2);
  EXPECT_EQ(coverage.rows[0].parameters, 2 * (4 * 5 + 7 * 4));
  EXPECT_TRUE(coverage.rows[0].uneven);
  EXPECT_EQ(coverage.layers_with_experts, 2);
  EXPECT_EQ(coverage.layers_with_trained_experts, 0);
  EXPECT_THAT(coverage.missed, ElementsAre());  // attention alone is meant
}

TEST(Coverage, experts_that_are_meant_and_missed_are_an_error) {
  TinyModel tiny;
  AdapterConfig config;
  config.target_modules = std::vector<std::string>{"q_proj", "down_proj"};
  ResolvedTargets resolved;
  resolved.targets = {TinyModel::target("model.layers.0.mlp.shared_expert.down_proj", "down_proj")};
  const auto coverage = coverage_of(config, resolved, tiny.tree, tiny.model);
  EXPECT_THAT(coverage.missed, ElementsAre("down_proj"));
  const std::string error = error_of([&] { require_experts(coverage, tiny.model, "--without-experts"); });
  EXPECT_THAT(error, HasSubstr("--target-parameters experts.gate_up_proj,experts.down_proj"));
  EXPECT_THAT(error, HasSubstr("--without-experts"));
}

TEST(Coverage, entries_that_match_nothing_are_an_error) {
  TinyModel tiny;
  ResolvedTargets resolved;
  resolved.targets = {TinyModel::target("model.layers.0.self_attn.q_proj", "q_proj")};
  resolved.config_after.target_modules = std::vector<std::string>{"q_proj", "qproj"};
  const auto coverage = coverage_of({}, resolved, tiny.tree, tiny.model);
  EXPECT_THAT(coverage.unmatched, ElementsAre("qproj"));
  EXPECT_THAT(error_of([&] { require_matches(coverage); }), HasSubstr("qproj"));
}

TEST(Coverage, memory_is_weights_gradients_and_two_states) { EXPECT_EQ(bytes_for(10).sum(), 160U); }

}  // namespace
}  // namespace peft::train
