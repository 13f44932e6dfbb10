// The files of a merged model: shards and their index, dtypes, several adapters, and what the report says of each
// matrix.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/judge.h"
#include "support/program.h"
#include "support/tiny_moe.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Effects = std::map<std::string, std::vector<double>>;

std::set<std::string> weight_files(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") names.insert(entry.path().filename().string());
  }
  return names;
}

// The index names every tensor once, where it is, and counts their bytes.
void expect_index(const fs::path& folder, const std::map<std::string, Found>& out) {
  const Json index = read_json(folder / "model.safetensors.index.json");
  std::uint64_t bytes = 0;
  Json places = Json::object();
  for (const auto& [name, found] : out) places[name] = found.file, bytes += found.bytes.size();
  EXPECT_EQ(index.at("weight_map"), places);
  EXPECT_EQ(index.at("metadata").at("total_size"), bytes);
}

Lora dense_and_expert(const TinyMoe& model, std::uint64_t seed) {
  Lora lora(model, 2, 4, seed);
  lora.linear("model.layers.0.self_attn.q_proj");
  lora.linear("model.layers.1.mlp.experts.1.down_proj");
  return lora;
}
const Json kTargets = {{"target_modules", {"layers.0.self_attn.q_proj", "layers.1.mlp.experts.1.down_proj"}},
                       {"peft_version", "0.18.1"}};

TEST(MergeShards, TheBasesOwnAndItsIndex) {
  const TinyMoe model("BF16", TinyMoe::Output::tied);
  model.write_base_folder(3);
  const fs::path index_file = model.folder.path() / "base" / "model.safetensors.index.json";
  Json index = read_json(index_file);
  index["metadata"]["total_parameters"] = 1;
  index["metadata"]["made_by"] = "a test";
  write_file(index_file, index.dump(2));
  Lora lora = dense_and_expert(model, 1);
  lora.embedding("model.embed_tokens");
  Json targets = kTargets;
  targets["target_modules"].push_back("embed_tokens");
  lora.write("adapter", targets);
  Effects effects = lora.effects();
  effects["lm_head.weight"] = model.at("model.embed_tokens.weight").values;
  const auto out = model.merge(model.options());
  expect_merged(model, out, effects);
  expect_index(model.folder.path() / "out", out);
  const Json metadata = read_json(model.folder.path() / "out" / "model.safetensors.index.json").at("metadata");
  std::uint64_t parameters = 0;
  for (const auto& [name, found] : out) parameters += found.values.size();
  EXPECT_EQ(metadata.at("total_parameters"), parameters);
  EXPECT_EQ(metadata.at("made_by"), "a test");
  EXPECT_EQ(weight_files(model.folder.path() / "out"), weight_files(model.folder.path() / "base"));
  for (const auto& [name, found] : tensors_in(model.folder.path() / "base"))
    EXPECT_EQ(out.at(name).file, found.file) << name;
}

TEST(MergeShards, NewOnesOfASize) {
  for (const std::size_t files : {1, 3}) {
    const TinyMoe model;
    model.write_base_folder(files);
    Lora lora = dense_and_expert(model, 2);
    lora.write("adapter", kTargets);
    MergeOptions options = model.options();
    options.max_shard_size = 300;  // an embedding has 272 bytes, a matrix of attention 128
    const auto out = model.merge(options);
    expect_merged(model, out, lora.effects());
    expect_index(model.folder.path() / "out", out);
    std::map<std::string, std::uint64_t> bytes;
    for (const auto& [name, found] : out) bytes[found.file] += found.bytes.size();
    EXPECT_GT(bytes.size(), 5u);
    std::size_t number = 0;
    for (const auto& [file, size] : bytes) {
      EXPECT_EQ(file, fmt::format("model-{:05d}-of-{:05d}.safetensors", ++number, bytes.size()));
      EXPECT_LE(size, 300u) << file;
    }
    expect_verified(model, options);
  }
}

TEST(MergeShards, OneThatIsTooLargeIsAloneAndAllFitIntoOne) {
  const TinyMoe model;
  model.write_base_folder(4);
  Lora lora = dense_and_expert(model, 2);
  lora.write("adapter", kTargets);
  MergeOptions options = model.options();
  options.max_shard_size = 200;
  auto out = model.merge(options);
  expect_merged(model, out, lora.effects());
  expect_index(model.folder.path() / "out", out);
  for (const auto& [name, found] : out) {
    EXPECT_EQ(found.file == out.at("lm_head.weight").file, name == "lm_head.weight") << name;
  }
  options.max_shard_size = 1'000'000;
  out = model.merge(options);
  expect_merged(model, out, lora.effects());
  EXPECT_EQ(weight_files(model.folder.path() / "out"), std::set<std::string>{"model.safetensors"});
  EXPECT_FALSE(fs::exists(model.folder / "out/model.safetensors.index.json"));
}

TEST(MergeDtypes, OutDtypeRoundsOnlyTheResult) {
  for (const auto& [from, to, dtype] : {std::tuple{"BF16", "F32", Dtype::f32},
                                        {"F32", "F16", Dtype::f16},
                                        {"F32", "BF16", Dtype::bf16},
                                        {"F16", "BF16", Dtype::bf16}}) {
    const TinyMoe model(from);
    model.write_base_folder();
    Lora lora = dense_and_expert(model, 3);
    lora.write("adapter", kTargets);
    MergeOptions options = model.options();
    options.out_dtype = dtype;
    const auto out = model.merge(options);
    ASSERT_EQ(out.size(), model.tensors.size());
    for (const auto& [name, tensor] : model.tensors) {
      const auto& values = lora.effects().contains(name) ? lora.effects().at(name) : tensor.values;
      ASSERT_EQ(out.at(name).dtype, to) << name;
      for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(out.at(name).values[i], nearest(to, nearest(from, values[i]))) << from << " " << name;
    }
    EXPECT_EQ(model.merged_config().at("torch_dtype"), std::string(to) == "F32"   ? "float32"
                                                       : std::string(to) == "F16" ? "float16"
                                                                                  : "bfloat16");
    VerifyMergedOptions verify;
    verify.merge = options;
    verify.merged = model.folder / "out";
    EXPECT_TRUE(verify_merged(verify).same);
  }
}

TEST(MergeDtypes, BaseDtypeRoundsTheBaseFirst) {
  TinyMoe model("F32");
  for (auto& [name, tensor] : model.tensors) {  // values that bf16 does not hold
    for (double& value : tensor.values) value += value * 0x1p-9;
    tensor = stored(name, "F32", tensor.shape, tensor.values);
  }
  model.write_base_folder();
  Lora lora = dense_and_expert(model, 3);
  lora.write("adapter", kTargets);
  for (const bool wide : {false, true}) {
    MergeOptions options = model.options();
    options.base_dtype = Dtype::bf16;
    if (wide) options.out_dtype = Dtype::f32;
    const auto out = model.merge(options);
    for (const auto& [name, tensor] : model.tensors) {
      const auto touched = lora.effects().find(name);
      ASSERT_EQ(out.at(name).dtype, wide ? "F32" : "BF16") << name;
      for (std::size_t i = 0; i < tensor.values.size(); ++i) {
        const double delta = touched == lora.effects().end() ? 0 : touched->second[i] - tensor.values[i];
        ASSERT_EQ(out.at(name).values[i], nearest_bf16(nearest_bf16(tensor.values[i]) + delta)) << name;
      }
    }
    EXPECT_EQ(model.merged_config().at("torch_dtype"), wide ? "float32" : "bfloat16");
  }
}

TEST(MergeDtypes, WhatDoesNotFitIsNamed) {
  TinyMoe model("F32");
  Stored& norm = model.tensors.at("model.norm.weight");
  norm.values[2] = 70000;
  norm = stored(norm.name, "F32", norm.shape, norm.values);
  model.write_base_folder();
  Lora lora = dense_and_expert(model, 3);
  lora.write("adapter", kTargets);
  MergeOptions options = model.options();
  options.out_dtype = Dtype::f16;
  const Error error = expect_error("70000 in fp16", [&] { model.merge(options); });
  EXPECT_EQ(error.code(), ErrorCode::NUM_OVERFLOW) << error.what();
  EXPECT_THAT(error.what(), HasSubstr("model.norm.weight"));
}

// The first touches q_proj and an expert, the second q_proj and o_proj.
TEST(MergeSeveral, WeightsAndTensorsThatOnlyOneTouches) {
  for (const std::string dtype : {"BF16", "F32"}) {
    const TinyMoe model(dtype);
    model.write_base_folder();
    Lora first = dense_and_expert(model, 5), second(model, 4, 4, 6);
    second.linear("model.layers.0.self_attn.q_proj");
    second.linear("model.layers.0.self_attn.o_proj");
    first.write("first", kTargets);
    second.write("second", {{"target_modules", {"layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"}}});
    MergeOptions options = model.options({"first", "second"});
    options.adapters[0].weight = 0.5;
    options.adapters[1].weight = -2;
    Effects effects;
    for (const auto& [lora, weight] : {std::pair{&first, 0.5}, {&second, -2.0}}) {
      for (const auto& [name, values] : lora->effects()) {
        auto& sum = effects.try_emplace(name, model.at(name).values).first->second;
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * (values[i] - model.at(name).values[i]);
      }
    }
    EXPECT_EQ(effects.size(), 3u);
    expect_merged(model, model.merge(options), effects);
    expect_verified(model, options);
  }
}

double norm_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

TEST(MergeReport, NormsOfTheJsonReportAreThoseOfFp64) {
  const TinyMoe model("F32");
  model.write_base_folder(2);
  Lora first = dense_and_expert(model, 5), second(model, 2, 3, 6);
  second.linear("model.layers.0.self_attn.q_proj", true);
  second.linear("model.layers.1.self_attn.v_proj", true);
  first.write("first", kTargets);
  second.write("second",
               {{"target_modules", {"layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"}}, {"use_dora", true}});
  const auto result =
      run_program(PEFT_BINARY_DIR "/peft",
                  {"merge", "--base", model.folder / "base", "--adapter", (model.folder / "first") + "@0.5",
                   "--adapter", model.folder / "second", "--out", model.folder / "out", "--json", "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
  const Json report = Json::parse(result.out);
  std::size_t seen = 0;
  for (const Json& row : report.at("tensors")) {
    const std::string name = row.at("tensor");
    const bool is_first = row.at("adapter") == 0;
    const auto& effects = (is_first ? first : second).effects();
    ASSERT_TRUE(effects.contains(name)) << name;
    std::vector<double> delta = effects.at(name);
    for (std::size_t i = 0; i < delta.size(); ++i)
      delta[i] = (is_first ? 0.5 : 1) * (delta[i] - model.at(name).values[i]);
    EXPECT_NEAR(row.at("base_norm").get<double>(), norm_of(model.at(name).values),
                1e-6 * norm_of(model.at(name).values))
        << name;
    EXPECT_NEAR(row.at("delta_norm").get<double>(), norm_of(delta), 1e-6 * norm_of(delta))
        << name << " of " << row.at("adapter");
    ++seen;
  }
  EXPECT_EQ(seen, 4u);
}

TEST(MergeReport, ZeroDeltasAreNamed) {
  const TinyMoe model;
  model.write_base_folder();
  Lora lora = dense_and_expert(model, 5);
  lora.linear("model.layers.0.self_attn.k_proj");
  Stored& b = lora.tensors().back();
  b = stored(b.name, "F32", b.shape, std::vector<double>(b.values.size(), 0));
  lora.effects().erase("model.layers.0.self_attn.k_proj.weight");
  Json targets = kTargets;
  targets["target_modules"].push_back("layers.0.self_attn.k_proj");
  lora.write("adapter", targets);
  const MergePlan plan = plan_merge(model.options());
  EXPECT_EQ(plan.zero_deltas, std::vector<std::string>{"model.layers.0.self_attn.k_proj"});
  EXPECT_THAT(fmt::format("{}", fmt::join(plan.plan.warnings, "\n")), HasSubstr("model.layers.0.self_attn.k_proj"));
  expect_merged(model, model.merge(model.options()), lora.effects());
  MergeOptions nothing = model.options();
  nothing.adapters.front().weight = 0;
  EXPECT_EQ(expect_error("weight 0", [&] { plan_merge(nothing); }).code(), ErrorCode::LO_NONE);
}

}  // namespace
}  // namespace peft::testing
