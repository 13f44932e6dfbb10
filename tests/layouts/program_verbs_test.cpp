// Every verb that takes an adapter, on files of llama.cpp, MLX-LM, Tinker and trainers: the answer is that for PEFT's
// file of the same function. Models and adapters are those of the golden group `runtime`: attention and 12 experts, H
// 40, I 24, r 3.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/judge.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

constexpr Layout kPrograms[] = {Layout::gguf,   Layout::mlx,    Layout::tinker,        Layout::megatron_bridge,
                                Layout::sglang, Layout::veomni, Layout::ktransformers, Layout::nemo};

struct Row {
  const char *model_type, *model;
};
constexpr Row kRows[] = {{"mixtral", "rt-mixtral"}, {"qwen3_moe", "rt-qwen3_moe"}, {"gpt_oss", "rt-gpt_oss"}};

// One model, PEFT's adapter for it, and the same in a program's form.
class ProgramVerbs : public ::testing::TestWithParam<std::tuple<Row, Layout>> {
 protected:
  ProgramVerbs() {
    const Row& row = std::get<0>(GetParam());
    base_ = (golden_root() / "models" / row.model).string();
    peft_ = (golden_root() / "runtime" / row.model_type / "adapter").string();
    options_.base = base_;
    const Input input = load(peft_, options_);
    want_ = factors_of(input);
    ConvertOptions convert_options;
    convert_options.input = options_;
    convert(input, convert_options, layout(), folder_ / "own");
    own_ = path_of(folder_ / "own", layout());
  }

  Layout layout() const { return std::get<1>(GetParam()); }

  // Names and shapes alone: how many experts there are, the stacks show.
  InputOptions without_base() const {
    InputOptions options;
    if (layout() != Layout::gguf) options.family = std::get<0>(GetParam()).model_type;
    return options;
  }

  // llama.cpp's architecture "llama" has rows of q and k in another order, by heads; KTransformers names experts by
  // their layer alone: that takes a config.json.
  bool needs_base() const {
    return layout() == Layout::ktransformers ||
           (layout() == Layout::gguf && std::get<0>(GetParam()).model_type == std::string("mixtral"));
  }

  std::vector<WeightedAdapter> halves() const { return {{own_, 0.5}, {own_, 0.5}}; }

  // The merged weights; what the file says of its adapters differs.
  std::shared_ptr<const TensorFile> merged(const std::string& adapter, const std::string& out) const {
    MergeOptions options;
    options.base = base_;
    options.adapters = {{adapter, 0.75}};
    materialize(plan_merge(options).plan, folder_ / out);
    return TensorFile::open(folder_ / (out + "/model.safetensors"));
  }

  TemporaryFolder folder_;
  std::string base_, peft_, own_;
  InputOptions options_;
  OracleFactors want_;
};

TEST_P(ProgramVerbs, inspect) {
  for (const InputOptions& options : {options_, without_base()}) {
    if (options.base.empty() && needs_base()) continue;
    SCOPED_TRACE(options.base.empty() ? "without --base" : "with --base");
    const InspectReport report = inspect(own_, options);
    EXPECT_EQ(report.error, "");
    EXPECT_EQ(report.layout, layout());
    EXPECT_EQ(report.model_type, std::get<0>(GetParam()).model_type);
    EXPECT_EQ(report.num_experts, 12);
    EXPECT_EQ(report.num_layers, 2);
    ASSERT_FALSE(report.ranks.empty());
    for (const auto& row : report.ranks) {
      EXPECT_EQ(row.rank, 3) << row.site;
      EXPECT_DOUBLE_EQ(row.scale, 5.0 / 3) << row.site;
    }
    EXPECT_FALSE(report.consumers.empty());
  }
}

TEST_P(ProgramVerbs, names_suffice_to_read_and_to_convert) {
  if (needs_base()) {
    const Error error = expect_error("load", [&] { load(own_, without_base()); });
    EXPECT_EQ(error.code(), ErrorCode::MD_NEEDED) << error.what();
    return;
  }
  compare_factors(want_, factors_of(load(own_, without_base())));
  ConvertOptions options;
  options.input = without_base();
  convert(load(own_, options.input), options, Layout::peft_fused, folder_ / "fused");
  compare_factors(want_, factors_of(load(folder_ / "fused", options_)));
}

TEST_P(ProgramVerbs, verify) {
  VerifyOptions options{options_, options_, false, 1};
  VerifyReport report = verify(peft_, own_, options);
  EXPECT_TRUE(report.same) << report.where;
  EXPECT_EQ(report.compared, static_cast<std::int64_t>(want_.size()));
  // Another function in the same form.
  CombineOptions half;
  half.input = options_;
  half.type = CombineType::cat;
  const std::vector<WeightedAdapter> once = {{own_, 0.5}};
  materialize(plan_combine(once, half).plan, folder_ / "half");
  report = verify(own_, path_of(folder_ / "half", layout()), options);
  EXPECT_FALSE(report.same);
  EXPECT_NEAR(report.largest_relative, 0.5, 1e-6);
}

TEST_P(ProgramVerbs, merge_gives_the_bytes_that_the_file_of_peft_gives) {
  compare_bytes(*merged(peft_, "of-peft"), *merged(own_, "of-own"));
}

TEST_P(ProgramVerbs, merged_is_verified) {
  MergeOptions merge;
  merge.base = base_;
  merge.adapters = {{own_, 1}};
  materialize(plan_merge(merge).plan, folder_ / "merged");
  VerifyMergedOptions options;
  options.merged = folder_ / "merged";
  options.merge = merge;
  const VerifyMergedReport report = verify_merged(options);
  EXPECT_TRUE(report.same) << (report.differences.empty() ? "" : report.differences.front().what);
  EXPECT_GT(report.changed, 0u);
}

TEST_P(ProgramVerbs, combine_and_resize_keep_the_layout) {
  CombineOptions combine;
  combine.input = options_;
  combine.type = CombineType::cat;
  const std::string sum = path_of(folder_ / "sum", layout());
  materialize(plan_combine(halves(), combine).plan, folder_ / "sum");
  EXPECT_EQ(load(sum, options_).reading.layout, layout());
  compare_deltas(want_, factors_of(load(sum, options_)), 1e-5);

  ResizeOptions resize;
  resize.input = options_;
  resize.rank = 3;  // that of the original: nothing is lost of the sum, whose rank is 6
  const LowRankResult resized = plan_resize(sum, resize);
  EXPECT_LT(resized.worst, 1e-5);
  const std::string out = path_of(folder_ / "resized", layout());
  materialize(resized.plan, folder_ / "resized");
  EXPECT_EQ(load(out, options_).reading.layout, layout());
  const VerifyReport report = verify(peft_, out, {options_, options_, true, 1});
  EXPECT_LT(report.largest_relative, 1e-5) << report.where;
}

TEST_P(ProgramVerbs, extract_writes_the_layout) {
  MergeOptions merge;
  merge.base = base_;
  merge.adapters = {{own_, 1}};
  materialize(plan_merge(merge).plan, folder_ / "merged");
  ExtractOptions extract;
  extract.base = base_, extract.finetuned = folder_ / "merged";
  extract.rank = 3;
  extract.to = layout();
  const std::string out = path_of(folder_ / "extracted", layout());
  materialize(plan_extract(extract).plan, folder_ / "extracted");
  const VerifyReport report = verify(peft_, out, {options_, options_, true, 1});
  EXPECT_LT(report.largest_relative, 1e-4) << report.where;  // the merged weights are rounded
  EXPECT_EQ(load(out, options_).reading.layout, layout());
}

INSTANTIATE_TEST_SUITE_P(All, ProgramVerbs,
                         ::testing::Combine(::testing::ValuesIn(kRows), ::testing::ValuesIn(kPrograms)),
                         [](const auto& row) {
                           std::string name = std::string(std::get<0>(row.param).model_type) + "_" +
                                              std::string(peft::info(std::get<1>(row.param)).name);
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// A dense adapter of each form, by its names alone: nothing says what model it is for.
TEST(ProgramVerbsDense, names_suffice_without_a_family) {
  const std::string peft = (golden_root() / "runtime" / "llama" / "adapter").string();
  InputOptions with_base;
  with_base.base = (golden_root() / "models" / "rt-llama").string();
  const Input input = load(peft, with_base);
  for (const Layout layout : kPrograms) {
    SCOPED_TRACE(info(layout).name);
    TemporaryFolder folder;
    ConvertOptions options;
    options.input = with_base;
    convert(input, options, layout, folder / "own");
    if (layout == Layout::gguf) {  // of architecture "llama"
      const Error error = expect_error("load", [&] { load(path_of(folder / "own", layout), {}); });
      EXPECT_EQ(error.code(), ErrorCode::MD_NEEDED) << error.what();
      continue;
    }
    const Input own = load(path_of(folder / "own", layout), {});
    compare_factors(factors_of(input), factors_of(own));
    ConvertOptions bare;
    convert(own, bare, Layout::peft_per_expert, folder / "back");
    compare_factors(factors_of(input), factors_of(load(folder / "back", with_base)));
  }
}

}  // namespace
}  // namespace peft::testing
