// Where weights lie: the same model in several forms fills the same parameters, byte for byte.
#include "peft/weights.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "peft/error.h"
#include "peft/execute.h"
#include "support/golden.h"
#include "support/matrix.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

struct Opened {
  Model model;
  Checkpoint checkpoint;
};
Opened open_model(const fs::path& folder) {
  return {describe({.base = folder.string()}), Checkpoint::open(folder.string())};
}

std::vector<WantedParameter> parameters_of(const Checkpoint& checkpoint) {
  std::vector<WantedParameter> wanted;
  for (const auto& entry : checkpoint.tensors()) {
    wanted.push_back({std::string(entry.tensor->name),
                      {entry.tensor->shape.begin(), entry.tensor->shape.end()},
                      entry.tensor->dtype});
  }
  return wanted;
}

// The bytes of all tensors of a loading, one image.
std::vector<std::byte> filled(const Loading& loading, const Checkpoint& checkpoint) {
  Plan plan;
  plan.sources = checkpoint.files();
  plan.files.push_back({"model.safetensors", loading.tensors});
  return execute_in_memory(plan).front();
}

// (the model as it is in memory, another form of it)
std::vector<std::pair<std::string, std::string>> forms() {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const auto& entry : fs::directory_iterator(golden_root() / "models")) {
    const fs::path facts = entry.path() / "facts.json";
    if (!fs::exists(facts)) continue;
    const Json json = read_json(facts);
    const std::string name = entry.path().filename().string();
    if (json.contains("in_memory_form")) pairs.emplace_back(json.at("in_memory_form").get<std::string>(), name);
    if (!json.contains("forms") || json.at("forms").at("v5") != name || !json.at("forms").contains("v4")) continue;
    pairs.emplace_back(name, json.at("forms").at("v4").get<std::string>());
  }
  std::sort(pairs.begin(), pairs.end());
  std::erase_if(pairs, [](const auto& pair) {
    return !fs::exists(golden_root() / "models" / pair.first) || !fs::exists(golden_root() / "models" / pair.second);
  });
  return pairs;
}

TEST(Weights, EveryFormFillsTheSameParameters) {
  const auto pairs = forms();
  if (pairs.empty()) GTEST_SKIP() << "no two forms of one model in the golden data";
  for (const auto& [memory, other] : pairs) {
    SCOPED_TRACE(memory + " from " + other);
    const Opened v5 = open_model(golden_root() / "models" / memory), v4 = open_model(golden_root() / "models" / other);
    const auto wanted = parameters_of(v5.checkpoint);
    const Loading own = Weights(v5.model, v5.checkpoint).load(wanted);
    const Loading from_other = Weights(v4.model, v4.checkpoint).load(wanted);
    for (const Loading* loading : {&own, &from_other}) {
      EXPECT_EQ(loading->missing, std::vector<std::string>{});
      EXPECT_EQ(loading->unexpected, std::vector<std::string>{});
      EXPECT_EQ(loading->ignored, std::vector<std::string>{});
      EXPECT_EQ(loading->tensors.size(), wanted.size());
    }
    EXPECT_EQ(filled(own, v5.checkpoint), filled(from_other, v4.checkpoint));
  }
}

// The text class takes its part of a composite checkpoint: other prefix, no vision tower.
TEST(Weights, TheTextClassLoadsACompositeCheckpoint) {
  const fs::path folder = golden_root() / "models" / "rt-qwen3_5_moe-v4";
  if (!fs::exists(folder)) GTEST_SKIP() << "no composite model in the golden data";
  const Opened composite = open_model(folder);
  const Opened memory = open_model(golden_root() / "models" / "rt-qwen3_5_moe");
  std::vector<WantedParameter> wanted;
  for (WantedParameter parameter : parameters_of(memory.checkpoint)) {
    const std::string prefix = "model.language_model.";
    if (parameter.name.starts_with("model.visual.")) continue;
    if (parameter.name.starts_with(prefix)) parameter.name = "model." + parameter.name.substr(prefix.size());
    wanted.push_back(std::move(parameter));
  }
  const Loading loading = Weights(composite.model, composite.checkpoint).load(wanted);
  EXPECT_EQ(loading.missing, std::vector<std::string>{});
  EXPECT_EQ(loading.unexpected, std::vector<std::string>{});
  EXPECT_FALSE(loading.ignored.empty());
  for (const std::string& name : loading.ignored) EXPECT_TRUE(name.starts_with("model.visual.")) << name;
}

TEST(Weights, WhatIsMissingOrStrangeIsNamed) {
  const fs::path folder = golden_root() / "models" / "rt-mixtral-v4";
  if (!fs::exists(folder)) GTEST_SKIP() << "no such model in the golden data";
  const Opened opened = open_model(folder);
  const Weights weights(opened.model, opened.checkpoint);
  const Loading nothing = weights.load({});
  EXPECT_EQ(nothing.unexpected.size(), opened.checkpoint.tensors().size());
  const std::vector<WantedParameter> strange = {{"model.layers.0.mlp.strange", {2}, Dtype::f32}};
  EXPECT_EQ(weights.load(strange).missing, std::vector<std::string>{"model.layers.0.mlp.strange"});
  const std::vector<WantedParameter> larger = {{"model.layers.0.mlp.experts.down_proj", {12, 40, 25}, Dtype::f32}};
  EXPECT_THROW(weights.load(larger), Error);
  EXPECT_EQ(weights.near("model.layers.0.self_attn.q_prj").front(), "model.layers.0.self_attn.q_proj");
}

// One expert's matrix is the same numbers in every form.
TEST(Weights, FindsOneExpertInEveryForm) {
  for (const auto& [memory, other] : forms()) {
    SCOPED_TRACE(memory + " and " + other);
    const Opened a = open_model(golden_root() / "models" / memory), b = open_model(golden_root() / "models" / other);
    const Weights in_a(a.model, a.checkpoint), in_b(b.model, b.checkpoint);
    for (const Experts& experts : a.model.experts) {
      for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
        const Site site{experts.v5_module, "", experts.num_experts - 1, projection};
        const auto x = in_a.find(site), y = in_b.find(site);
        ASSERT_TRUE(x && y) << describe(site);
        EXPECT_TRUE(same_bits(matrix_of(*a.checkpoint.files()[x->parts[0].view.source], x->parts[0].view),
                              matrix_of(*b.checkpoint.files()[y->parts[0].view.source], y->parts[0].view)));
        EXPECT_EQ(x->out, projection == Projection::down ? experts.hidden : experts.intermediate);
      }
      EXPECT_FALSE(in_a.find({experts.v5_module, "", experts.num_experts, Projection::down}));
    }
  }
}

}  // namespace
}  // namespace peft::testing
