#include "config/peft_rules.h"

#include <gtest/gtest.h>

namespace peft::config {
namespace {

using enum LoraInit;

// What PEFT 0.21.2 does with LoraConfig(init_lora_weights=NAME): names that it starts from, and those that raise
// ValueError.
TEST(LoraInit, TellsNamesApartAsPeftDoes) {
  struct Case {
    std::string_view name;
    std::optional<LoraInit> init;
    std::optional<int> steps = std::nullopt;
  };
  const Case cases[] = {
      {"true", standard},          {"false", random},     {"Gaussian", gaussian}, {"GAUSSIAN", gaussian},
      {"orthogonal", orthogonal},  {"Orthogonal", {}},    {"pissa", pissa},       {"Pissa", {}},
      {"pissa_niter_4", pissa, 4}, {"pissa_niter_x", {}}, {"pissa_niter_", {}},   {"pissa_niter_4x", {}},
      {"pissa_foo", {}},           {"OLoRA", olora},      {"olora_x", {}},        {"corda", corda},
      {"corda_kpm", corda},        {"loftq", loftq},      {"eva", eva},           {"MiCA", mica},
      {"lora_ga", lora_ga},        {"", random},          {"gaussia", {}},        {"gaussians", {}}};
  for (const Case& c : cases) {
    EXPECT_EQ(lora_init(c.name), c.init) << c.name;
    EXPECT_EQ(pissa_iterations(c.name), c.steps) << c.name;
  }
}

TEST(LoraInit, KnowsWhichChangeTheBase) {
  for (const auto name : {"pissa", "pissa_niter_16", "olora", "OLORA", "corda", "loftq", "lora_ga"}) {
    EXPECT_TRUE(changes_base(name)) << name;
  }
  for (const auto name : {"true", "false", "gaussian", "orthogonal", "eva", "mica", "unheard_of"}) {
    EXPECT_FALSE(changes_base(name)) << name;
  }
}

TEST(PeftRules, AnEntryNamesWhatEndsWithItAfterADot) {
  EXPECT_TRUE(is_named_by("model.layers.0.q_proj", std::string_view("q_proj")));
  EXPECT_TRUE(is_named_by("q_proj", std::string_view("q_proj")));
  EXPECT_TRUE(is_named_by("a.b.c", std::string_view("b.c")));
  EXPECT_FALSE(is_named_by("model.qq_proj", std::string_view("q_proj")));
  EXPECT_FALSE(is_named_by("proj", std::string_view("q_proj")));
  EXPECT_TRUE(is_named_by("a.k", std::vector<std::string>{"q", "k"}));
  EXPECT_FALSE(is_named_by("a.v", std::vector<std::string>{"q", "k"}));
}

TEST(PeftRules, peft_takes_these_names_for_experts) {
  for (const char* name : {"model.layers.0.mlp.shared_expert.gate_proj", "block.w2", "gate"})
    EXPECT_TRUE(is_named_like_projection(name)) << name;
  for (const char* name : {"model.layers.0.self_attn.q_proj", "gate_proj.x", "router"})
    EXPECT_FALSE(is_named_like_projection(name)) << name;
}

}  // namespace
}  // namespace peft::config
