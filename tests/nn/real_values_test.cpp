// Small models beside values that the real programs gave: transformers 5.24.0 and PEFT 0.21.2.
#include <gtest/gtest.h>

#include <cmath>

#include "nn/golden_nn.h"
#include "nn/model/config.h"
#include "nn/model/network.h"
#include "nn/small_models.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;

// Every weight is sin(0.7 k + the sum of its name's letters modulo 97) / 2, of norms one more.
void fill(CausalLM& model) {
  for (const auto& [name, tensor] : model.parameters()) {
    double start = 0;
    for (const char c : name) start += c;
    start = std::fmod(start, 97);
    const at::Tensor k = at::arange(tensor.numel(), at::kDouble);
    const double offset = name.find("norm") != std::string::npos ? 1 : 0;
    at::Tensor(tensor).copy_(((k * 0.7 + start).sin() * 0.5 + offset).view(tensor.sizes()).to(at::kFloat));
  }
}

TEST(AuxLoss, IsThatOfTransformers) {
  const TemporaryFolder folder;
  const auto model = made(folder,
                          qwen3_moe({{"vocab_size", 16},
                                     {"hidden_size", 8},
                                     {"intermediate_size", 8},
                                     {"moe_intermediate_size", 4},
                                     {"num_attention_heads", 2},
                                     {"num_key_value_heads", 1},
                                     {"head_dim", 4}}),
                          {.dtype = at::kFloat});
  fill(*model);
  const at::Tensor ids = at::tensor({1, 5, 2, 9, 11, 3, 4, 4, 7, 0, 8, 15}, at::kLong).view({2, 6});
  const at::NoGradGuard no_gradients;
  EXPECT_NEAR(model->forward({.ids = ids, .want_aux_loss = true}, {}).aux_loss.item<double>(), 2.0633974075317383,
              2e-6);
  at::Tensor mask = at::ones({2, 6}, at::kLong);
  mask.select(0, 0).narrow(0, 0, 2).zero_();
  EXPECT_NEAR(model->forward({.ids = ids, .mask = mask, .want_aux_loss = true}, {}).aux_loss.item<double>(),
              2.1568431854248047, 2e-6);
}

TEST(Rope, FrequenciesAreThoseOfTransformers) {
  RopeConfig linear, yarn;
  linear.type = "linear", linear.factor = 4;
  yarn.type = "yarn", yarn.theta = 150000, yarn.factor = 32, yarn.original_max_position = 4096, yarn.truncate = false;
  const std::vector<std::pair<Frequencies, std::vector<double>>> rows = {
      {rope_frequencies(linear, 16),
       {0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05}},
      {rope_frequencies(yarn, 16),
       {1.0, 0.225418001, 0.0508132726, 0.00679495931, 0.000456483918, 1.8188337e-05, 4.09997847e-06, 9.24208962e-07}}};
  for (const auto& [got, want] : rows) {
    ASSERT_EQ(got.inverse.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got.inverse[i], want[i], 1e-6 * want[i]) << i;
  }
  EXPECT_EQ(rows[0].first.scaling, 1);
  EXPECT_NEAR(rows[1].first.scaling, 1.3465735902799727, 1e-12);
}

struct Named {
  const char* model;
  std::vector<std::string> targets;
  const char* line;   // what PEFT prints
  const char* error;  // or what is said instead
};
const Named kNamed[] = {
    {"qwen3_moe", {"gate_proj", "up_proj", "down_proj"}, "trainable params: 5,632 || all params: 28,608 ", ""},
    {"qwen3_moe", {"all-linear"}, "trainable params: 7,712 || all params: 30,688 ", ""},
    {"qwen3_moe", {"down_proj"}, "trainable params: 1,536 || all params: 24,512 ", ""},
    {"qwen3_moe", {"gate", "q_proj"}, "trainable params: 800 || all params: 23,776 ", ""},
    {"qwen3_moe", {"q_proj", "gate_proj", "up_proj"}, "trainable params: 4,608 || all params: 27,584 ", ""},
    {"mixtral", {"w1", "w2", "w3"}, "trainable params: 5,632 || all params: 28,576 ", ""},
    {"mixtral", {"all-linear"}, "trainable params: 7,712 || all params: 30,656 ", ""},
    {"mixtral", {"q_proj", "w2"}, "trainable params: 2,048 || all params: 24,992 ", ""},
    {"qwen3_moe", {"gate_proj"}, "", "only one of them is a target"},
    {"qwen3_moe", {"model.layers.1.mlp.experts.0.down_proj"}, "", "only 1 of 4 experts"},
    {"mixtral", {"gate_proj", "up_proj"}, "", "no module of the base has such a name"},
};

TEST(NamesOfTransformers4, BecomeParametersAsInPeft) {
  for (const Named& row : kNamed) {
    SCOPED_TRACE(std::string(row.model) + " " + row.targets.front());
    const TemporaryFolder folder;
    const auto base = made(folder, std::string(row.model) == "mixtral" ? mixtral() : qwen3_moe(Json::object()),
                           {.dtype = at::kFloat});
    LoraConfig config;
    config.r = 4, config.lora_alpha = {8};
    if (row.targets.front() == "all-linear")
      config.target_modules = all_linear;
    else
      config.target_modules = row.targets;
    try {
      const auto lora = get_peft_model(base, config);
      EXPECT_EQ(lora->trainable_parameters_line().substr(0, std::string(row.line).size()), row.line);
      EXPECT_STREQ(row.error, "");
    } catch (const Error& error) {
      EXPECT_STREQ(row.line, "") << error.what();
      EXPECT_NE(std::string(error.what()).find(row.error), std::string::npos) << error.what();
    }
  }
}

// Parameters cannot have dropout, whatever names lead to them; PEFT's class for them says so too.
TEST(NamesOfTransformers4, DropoutIsRefusedAsForParameters) {
  const TemporaryFolder folder;
  const auto base = made(folder, qwen3_moe(Json::object()), {.dtype = at::kFloat});
  const std::vector<std::string> names_of_experts = {"gate_proj", "up_proj", "down_proj"},
                                 names_of_attention = {"q_proj", "v_proj"};
  for (const auto& names : {names_of_experts, names_of_attention}) {
    LoraConfig config;
    config.r = 4, config.lora_alpha = {8}, config.lora_dropout = 0.25;
    config.target_modules = names;
    try {
      const auto lora = get_peft_model(base, config);
      EXPECT_EQ(names, names_of_attention);
    } catch (const Error& error) {
      EXPECT_EQ(names, names_of_experts) << error.what();
      EXPECT_NE(std::string(error.what()).find("lora_dropout"), std::string::npos) << error.what();
    }
  }
}

// PEFT loses the dense layers here (its issue 3711).
TEST(NamesOfTransformers4, DenseLayersKeepTheirLora) {
  const TemporaryFolder folder;
  const auto base = made(folder, qwen3_moe({{"mlp_only_layers", {0}}}), {.dtype = at::kFloat});
  LoraConfig config;
  config.r = 4, config.lora_alpha = {8};
  config.target_modules = std::vector<std::string>{"gate_proj", "up_proj", "down_proj"};
  const auto lora = get_peft_model(base, config);
  EXPECT_EQ(lora->get_nb_trainable_parameters().first,
            5'632 / 2 + 3 * 4 * (32 + 48));  // one layer of experts, one of 32 x 48
}

}  // namespace
}  // namespace peft::nn::testing
