// LoRA on routers: a module in transformers 4, a parameter in 5, often under one name. Without experts nothing else
// tells the layouts apart, so the config alone says whether the file was converted.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

struct Router {
  const char *model, *v4, *v5;  // a golden model of transformers 4, the router's name in each generation
};

class RouterAlone : public ::testing::TestWithParam<Router> {};

Json convert_to(Layout to, const std::filesystem::path& from, const std::filesystem::path& out,
                const std::string& base) {
  ConvertOptions options;
  options.to = to;
  options.input.base = base;
  execute(plan_convert(load(from, options.input), options), out, {.threads = 1, .sync = false});
  return read_json(out / "adapter_config.json");
}

TEST_P(RouterAlone, IsAParameterInFiveAndAModuleAgainInFour) {
  const std::string base = std::string(PEFT_SOURCE_DIR "/tests/golden/models/") + GetParam().model, v4 = GetParam().v4;
  const Json facts = read_json(std::filesystem::path(base) / "config.json");
  const std::int64_t hidden = facts.at("hidden_size"), rank = 3;
  const std::int64_t experts =
      facts.contains("num_local_experts") ? facts.at("num_local_experts") : facts.at("num_experts");
  const TemporaryFolder folder;
  Draw draw(5);
  const auto pair = [&](const std::string& module, std::int64_t out) {
    return std::vector{
        stored("base_model.model.model.layers.0." + module + ".lora_A.weight", "F32", draw.matrix(rank, hidden, 1, 9)),
        stored("base_model.model.model.layers.0." + module + ".lora_B.weight", "F32", draw.matrix(out, rank, 1, 9))};
  };
  std::vector<Stored> tensors = pair(v4, experts);
  const std::string leaf = v4.substr(v4.rfind('.') + 1);
  write_lora(
      folder / "v4",
      lora_config(rank, 6, {{"target_modules", {leaf}}, {"layers_to_transform", {0}}, {"peft_version", "0.18.1"}}),
      tensors);

  const Json v5 = convert_to(Layout::peft_fused, folder / "v4", folder / "v5", base);
  EXPECT_TRUE(v5.at("target_modules").empty()) << v5;
  ASSERT_EQ(v5.at("target_parameters").size(), 1u);
  const Json back = convert_to(Layout::peft_per_expert, folder / "v5", folder / "back", base);
  EXPECT_EQ(back.at("target_modules").size(), 1u) << back;
  EXPECT_TRUE(back.value("target_parameters", Json()).is_null()) << back;

  const auto fused = tensors_in(folder / "v5"), again = tensors_in(folder / "back");
  ASSERT_EQ(fused.size(), 2u);
  ASSERT_EQ(again.size(), 2u);
  for (const Stored& tensor : tensors) EXPECT_EQ(again.at(tensor.name).bytes, tensor.bytes) << tensor.name;
  EXPECT_TRUE(fused.contains(std::string("base_model.model.model.layers.0.") + GetParam().v5 + ".lora_A.weight"));
}

INSTANTIATE_TEST_SUITE_P(Families, RouterAlone,
                         ::testing::Values(Router{"qwen3_moe-v4", "mlp.gate", "mlp.gate"},
                                           Router{"qwen2_moe-v4", "mlp.gate", "mlp.gate"},
                                           Router{"olmoe-v4", "mlp.gate", "mlp.gate"},
                                           Router{"mixtral-v4", "block_sparse_moe.gate", "mlp.gate"},
                                           Router{"phimoe-v4", "block_sparse_moe.gate", "mlp.router"}),
                         [](const auto& test) {
                           std::string name = test.param.model;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace peft::testing
