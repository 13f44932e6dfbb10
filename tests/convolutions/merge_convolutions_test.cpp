// LoRA on convolutions: kernels of any dimension, and what PEFT makes of them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/judge.h"
#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Kernels of 1, 2 and 3 dimensions: the delta is B (a kernel of one) times A, in the kernel's own shape.
TEST(MergeConvolutions, KernelsOfAnyDimension) {
  TemporaryFolder folder;
  const std::map<std::string, std::vector<std::int64_t>> kernels = {
      {"encoder.one", {4, 3, 5}}, {"encoder.two", {4, 3, 2, 5}}, {"encoder.three", {4, 2, 2, 3, 5}}};
  for (const std::string dtype : {"BF16", "F32"}) {
    for (const bool dora : {false, true}) {
      for (const bool sharded : {false, true}) {
        fs::remove_all(folder.path());
        std::vector<std::vector<Stored>> files(sharded ? 2 : 1);
        std::vector<Stored> lora;
        std::map<std::string, std::vector<double>> want;
        Draw draw(9);
        for (const auto& [module, shape] : kernels) {
          std::int64_t in = 1;
          for (std::size_t i = 1; i < shape.size(); ++i) in *= shape[i];
          const Matrix base = draw.matrix(shape[0], in, 0.125, 30), a = draw.matrix(2, in, 0.5, 3),
                       b = draw.matrix(shape[0], 2, 0.5, 3);
          std::vector<std::int64_t> a_shape = shape, b_shape(shape.size(), 1), m_shape(shape.size(), 1);
          a_shape[0] = 2, b_shape[0] = shape[0], b_shape[1] = 2, m_shape[1] = shape[0];
          files[module == "encoder.one" ? 0 : files.size() - 1].push_back(
              stored(module + ".weight", dtype, shape, base.values));
          lora.push_back(stored("base_model.model." + module + ".lora_A.weight", "F32", a_shape, a.values));
          lora.push_back(stored("base_model.model." + module + ".lora_B.weight", "F32", b_shape, b.values));
          const Matrix delta = scaled(2, product(b, a));
          std::vector<double> sum = base.values, magnitudes;
          for (std::int64_t i = 0; i < shape[0]; ++i) {
            double square = 0;
            for (std::int64_t j = 0; j < in; ++j) {
              double& value = sum[static_cast<std::size_t>(i * in + j)];
              value += delta.at(i, j);
              square += value * value;
            }
            magnitudes.push_back(nearest("F32", 1.25 * std::sqrt(square)));
            for (std::int64_t j = 0; dora && j < in; ++j)
              sum[static_cast<std::size_t>(i * in + j)] *= magnitudes.back() / std::sqrt(square);
          }
          if (dora)
            lora.push_back(stored("base_model.model." + module + ".lora_magnitude_vector", "F32", m_shape, magnitudes));
          want[module + ".weight"] = sum;
        }
        files[0].push_back(stored("encoder.norm.weight", dtype, draw.matrix(1, 4, 1, 3)));
        write_base(folder / "base", {{"model_type", "a_model_of_kernels"}, {"torch_dtype", "float32"}}, files);
        write_lora(folder / "adapter",
                   lora_config(2, 4, {{"target_modules", {"one", "two", "three"}}, {"use_dora", dora}}), lora);
        MergeOptions options;
        options.base = folder / "base";
        options.adapters = {{folder / "adapter", 1}};
        for (const MergeMode mode : {MergeMode::best, MergeMode::fast}) {
          fs::remove_all(folder / "out");
          options.mode = mode;
          execute(plan_merge(options).plan, folder / "out");
          const auto out = tensors_in(folder / "out");
          for (const auto& [name, values] : want) {
            EXPECT_EQ(out.at(name).shape, kernels.at(name.substr(0, name.size() - 7))) << name;
            for (std::size_t i = 0; i < values.size(); ++i) {
              const double rounded = nearest(dtype, values[i]),
                           place = std::ldexp(std::fabs(rounded), dtype == "F32" ? -22 : -6);
              ASSERT_NEAR(out.at(name).values[i], rounded, dora || mode == MergeMode::fast ? place : 0)
                  << name << " " << i;
            }
          }
          VerifyMergedOptions verify{folder / "out", options, 0};
          EXPECT_TRUE(verify_merged(verify).same);
          verify.merged = folder / "base";
          const auto report = verify_merged(verify);
          EXPECT_EQ(report.num_differences, 3);
          for (const auto& difference : report.differences)
            EXPECT_EQ(difference.kind, MergedDifference::Kind::not_merged) << difference.tensor;
        }
      }
    }
  }
}

TEST(MergeConvolutions, GroupsAreRefused) {
  TemporaryFolder folder;
  Draw draw(4);
  write_base(folder / "base", {{"model_type", "a_model_of_kernels"}},
             {{stored("encoder.depth.weight", "F32", {6, 1, 4}, draw.matrix(1, 24, 1, 5).values)}});
  write_lora(
      folder / "adapter", lora_config(2, 4, {{"target_modules", {"depth"}}}),
      {stored("base_model.model.encoder.depth.lora_A.weight", "F32", {2, 6, 4}, draw.matrix(1, 48, 1, 5).values),
       stored("base_model.model.encoder.depth.lora_B.weight", "F32", {6, 2, 1}, draw.matrix(1, 12, 1, 5).values)});
  MergeOptions options;
  options.base = folder / "base";
  options.adapters = {{folder / "adapter", 1}};
  const Error error = expect_error("groups", [&] { plan_merge(options); });
  EXPECT_EQ(error.code(), ErrorCode::LO_SHAPE) << error.what();
}

// merge_and_unload() of PEFT 0.21.2, safe or not: tests/convolutions/make.py.
TEST(MergeConvolutions, PeftModesAreTheBitsOfPeft) {
  const fs::path root = fs::path(PEFT_SOURCE_DIR) / "tests/convolutions";
  std::size_t kinds = 0, rounded_twice = 0;
  for (const std::string kind : {"fp32", "bf16", "fp16", "fp32-dora", "bf16-dora", "fp16-dora"}) {
    for (const bool safe : {false, true}) {
      SCOPED_TRACE(kind + (safe ? " safe" : ""));
      const TemporaryFolder folder;
      MergeOptions options;
      options.base = (root / kind).string();
      options.adapters = {{(root / kind / "adapter").string(), 1}};
      options.mode = safe ? MergeMode::peft_safe : MergeMode::peft;
      fs::create_directories(folder.path() / "base");  // the answers lie beside the base
      for (const char* name : {"model.safetensors", "config.json"})
        fs::copy_file(root / kind / name, folder.path() / "base" / name);
      options.base = folder / "base";
      execute(plan_merge(options).plan, folder / "out");
      fs::create_directories(folder.path() / "want");
      fs::copy_file(root / kind / (safe ? "merged_safe.safetensors" : "merged.safetensors"),
                    folder.path() / "want" / "model.safetensors");
      fs::create_directories(folder.path() / "plain");
      fs::copy_file(root / kind / "merged.safetensors", folder.path() / "plain" / "model.safetensors");
      const auto out = tensors_in(folder / "out"), want = tensors_in(folder / "want"),
                 base = tensors_in(folder / "base"), plain = tensors_in(folder / "plain");
      ASSERT_EQ(out.size(), want.size());
      std::size_t changed = 0;
      for (const auto& [name, tensor] : want) {
        EXPECT_EQ(out.at(name).shape, tensor.shape) << name;
        EXPECT_TRUE(out.at(name).values == tensor.values) << name;
        changed += tensor.values != base.at(name).values ? 1 : 0;
        rounded_twice += tensor.values != plain.at(name).values ? 1 : 0;
      }
      EXPECT_EQ(changed, 4u);
      EXPECT_TRUE(verify_merged({folder / "out", options, 0}).same);
      ++kinds;
    }
  }
  EXPECT_EQ(kinds, 12u);
  EXPECT_EQ(rounded_twice, 8u) << "safe or not is no difference here";
}

}  // namespace
}  // namespace peft::testing
