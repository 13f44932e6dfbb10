// peft verify --merged on models merged by PEFT and by us, as they are and broken on purpose; and extraction from them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "execute/values/element.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "support/golden.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A model in memory, to be changed and written: one file, every tensor of one dtype.
struct Loose {
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<double> values;
  };
  std::vector<Tensor> tensors;
  Dtype dtype = Dtype::f32;

  Tensor& at(const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
  }
  void write(const fs::path& folder, const fs::path& config) const {
    std::vector<NewTensor> list;
    for (const Tensor& tensor : tensors) list.push_back({tensor.name, dtype, tensor.shape});
    const FileLayout layout = layout_file(list);
    std::vector<std::byte> image(layout.file_bytes());
    std::memcpy(image.data(), layout.head.data(), layout.head.size());
    const auto width = static_cast<std::size_t>(info(dtype).bits / 8);
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      std::byte* to = image.data() + layout.head.size() + layout.begin[t];
      for (const double v : tensors[t].values) execution::store_element(dtype, v, to), to += width;
    }
    fs::create_directories(folder);
    write_file(folder / "model.safetensors", {reinterpret_cast<const char*>(image.data()), image.size()});
    fs::copy_file(config, folder / "config.json", fs::copy_options::overwrite_existing);
  }
};

std::vector<double> values_of(const TensorFile& file, const TensorInfo& tensor) {
  const auto bytes = file.bytes(tensor);
  const auto width = static_cast<std::size_t>(info(tensor.dtype).bits / 8);
  std::vector<double> values;
  for (std::size_t at = 0; at < bytes.size(); at += width)
    values.push_back(execution::load_element(tensor.dtype, bytes.data() + at));
  return values;
}

Loose read_loose(const fs::path& folder, Dtype dtype) {
  const Checkpoint checkpoint = Checkpoint::open(folder.string());
  Loose model{{}, dtype};
  for (const auto& entry : checkpoint.tensors()) {
    model.tensors.push_back({std::string(entry.tensor->name),
                             {entry.tensor->shape.begin(), entry.tensor->shape.end()},
                             values_of(*checkpoint.files()[entry.file], *entry.tensor)});
  }
  return model;
}

std::string all_of(const VerifyMergedReport& report) {
  std::string text;
  for (const auto& d : report.differences) text += std::string(name(d.kind)) + " " + d.tensor + ": " + d.what + "\n";
  return text;
}

// A golden case of merge: the base in the dtype of the case, the adapters, what PEFT made of it.
class Golden {
 public:
  Golden(const Case& c, const TemporaryFolder& folder) : case_(c), folder_(folder) {
    model_ = golden_root() / "models" / c.json.at("model").get<std::string>();
    dtype_ = parse_dtype(c.json.at("base_dtype").get<std::string>()).value();
    base_ = read_loose(model_, dtype_);
    base_.write(folder.path() / "base", model_ / "config.json");
    options_.merge.base = folder / "base";
    options_.merge.adapters = {{(c.folder / "adapter").string(), 1}};
    if (fs::exists(c.folder / "adapter/other"))
      options_.merge.adapters.push_back({(c.folder / "adapter/other").string(), 1});
  }
  Loose merged(const std::string& answer) const {
    Loose model = base_;
    const auto file = TensorFile::open((case_.folder / "expected" / answer).string());
    for (const TensorInfo& tensor : file->tensors())
      model.at(std::string(tensor.name)).values = values_of(*file, tensor);
    return model;
  }
  VerifyMergedReport verify(const Loose& model) {
    fs::remove_all(folder_.path() / "merged");
    model.write(folder_.path() / "merged", model_ / "config.json");
    options_.merged = folder_ / "merged";
    return verify_merged(options_);
  }
  const Loose& base() const { return base_; }
  const fs::path& model() const { return model_; }
  VerifyMergedOptions& options() { return options_; }

 private:
  const Case& case_;
  const TemporaryFolder& folder_;
  fs::path model_;
  Dtype dtype_ = Dtype::f32;
  Loose base_;
  VerifyMergedOptions options_;
};

std::vector<Case> merge_cases() {
  std::vector<Case> list = cases(golden_root(), "merge");
  std::erase_if(list, [](const Case& c) { return c.json.at("expect").contains("combined"); });
  return list;
}

TEST(VerifyMerged, what_peft_merged_is_merged_and_the_exact_sum_is_exact) {
  if (merge_cases().empty()) GTEST_SKIP() << "no merges in this golden data";
  for (const Case& c : merge_cases()) {
    const TemporaryFolder folder;
    Golden golden(c, folder);
    const VerifyMergedReport peft = golden.verify(golden.merged("merged.safetensors"));
    EXPECT_TRUE(peft.same) << c.id << "\n" << all_of(peft);
    EXPECT_GT(peft.bounds.all(), 0u) << c.id;
    if (fs::exists(c.folder / "expected/merged_safe.safetensors")) {
      Loose safe = golden.merged("merged.safetensors");
      const auto file = TensorFile::open((c.folder / "expected/merged_safe.safetensors").string());
      for (const TensorInfo& tensor : file->tensors())
        safe.at(std::string(tensor.name)).values = values_of(*file, tensor);
      const VerifyMergedReport report = golden.verify(safe);
      EXPECT_TRUE(report.same) << c.id << "\n" << all_of(report);
      EXPECT_GT(report.bounds.two_roundings, 0u) << c.id << ": two roundings are said";
    }
    const VerifyMergedReport best = golden.verify(golden.merged("best.safetensors"));
    EXPECT_TRUE(best.same) << c.id << "\n" << all_of(best);
    EXPECT_EQ(best.bounds.exact, best.bounds.all()) << c.id;
    EXPECT_LE(best.worst_places, 0.5) << c.id;
  }
}

TEST(VerifyMerged, the_base_itself_is_not_merged_and_every_changed_tensor_is_named) {
  for (const Case& c : merge_cases()) {
    const TemporaryFolder folder;
    Golden golden(c, folder);
    const VerifyMergedReport report = golden.verify(golden.base());
    EXPECT_FALSE(report.same) << c.id;
    EXPECT_GE(static_cast<std::size_t>(report.num_differences), c.json["expect"]["changed"].size()) << c.id;
    for (const auto& difference : report.differences)
      EXPECT_EQ(difference.kind, MergedDifference::Kind::not_merged)
          << c.id << " " << difference.tensor << difference.what;
  }
}

TEST(VerifyMerged, another_scale_is_estimated) {
  for (const Case& c : merge_cases()) {
    if (c.id.find("dora") != std::string::npos || c.id.find("two") != std::string::npos) continue;
    for (const double factor : {2.0, 0.5, -1.0}) {
      const TemporaryFolder folder;
      Golden golden(c, folder);
      for (auto& adapter : golden.options().merge.adapters) adapter.weight = factor;
      fs::remove_all(folder.path() / "scaled");
      materialize(plan_merge(golden.options().merge).plan, folder.path() / "scaled");
      golden.options().merge.adapters.front().weight = 1;
      golden.options().merged = folder / "scaled";
      const VerifyMergedReport report = verify_merged(golden.options());
      EXPECT_FALSE(report.same) << c.id;
      for (const auto& difference : report.differences) {
        EXPECT_EQ(difference.kind, MergedDifference::Kind::scaled)
            << c.id << " " << difference.tensor << " " << difference.what;
        EXPECT_NEAR(difference.factor, factor, 0.06 * std::abs(factor) + 0.02) << c.id << " " << difference.tensor;
      }
    }
  }
}

const Case* find_case(const std::vector<Case>& list, const std::string& id) {
  const auto at =
      std::find_if(list.begin(), list.end(), [&](const Case& c) { return c.id == "merge/" + id || c.id == id; });
  return at == list.end() ? nullptr : &*at;
}

TEST(VerifyMerged, one_expert_one_adapter_one_foreign_change_and_one_missing_tensor_are_found) {
  const auto list = merge_cases();
  const Case* c = find_case(list, "qwen3_moe-bf16");
  if (c == nullptr) GTEST_SKIP() << "no such case in this golden data";
  const TemporaryFolder folder;
  Golden golden(*c, folder);
  const std::string down = "model.layers.1.mlp.experts.down_proj";
  Loose model = golden.merged("merged.safetensors");
  auto& broken = model.at(down);
  const auto& plain = const_cast<Loose&>(golden.base()).at(down);
  const std::size_t per_expert = broken.values.size() / static_cast<std::size_t>(broken.shape[0]);
  std::copy_n(plain.values.begin() + static_cast<std::ptrdiff_t>(2 * per_expert), per_expert,
              broken.values.begin() + static_cast<std::ptrdiff_t>(2 * per_expert));
  VerifyMergedReport report = golden.verify(model);
  ASSERT_EQ(report.num_differences, 1) << all_of(report);
  EXPECT_EQ(report.differences[0].kind, MergedDifference::Kind::not_merged);
  EXPECT_EQ(report.differences[0].tensor, "model.layers.1.mlp.experts.2.down");

  model = golden.merged("merged.safetensors");
  model.at("model.norm.weight").values[3] += 0.5;
  report = golden.verify(model);
  ASSERT_EQ(report.num_differences, 1) << all_of(report);
  EXPECT_EQ(report.differences[0].kind, MergedDifference::Kind::changed);
  EXPECT_EQ(report.differences[0].tensor, "model.norm.weight");
  EXPECT_EQ(report.differences[0].elements, 1u);

  model = golden.merged("merged.safetensors");
  std::erase_if(model.tensors, [](const auto& t) { return t.name == "model.norm.weight"; });
  model.tensors.push_back({"stranger", {2}, {1, 2}});
  report = golden.verify(model);
  ASSERT_EQ(report.num_differences, 2) << all_of(report);
  EXPECT_EQ(report.differences[0].kind, MergedDifference::Kind::missing);
  EXPECT_EQ(report.differences[1].kind, MergedDifference::Kind::extra);
  EXPECT_EQ(report.differences[1].tensor, "stranger");
}

TEST(VerifyMerged, of_two_adapters_the_missing_one_is_told) {
  const auto list = merge_cases();
  const Case* c = find_case(list, "qwen3_moe-two-bf16");
  if (c == nullptr) GTEST_SKIP() << "no such case in this golden data";
  const TemporaryFolder folder;
  Golden golden(*c, folder);
  MergeOptions one = golden.options().merge;
  one.adapters.resize(1);
  materialize(plan_merge(one).plan, folder.path() / "one");
  golden.options().merged = folder / "one";
  const VerifyMergedReport report = verify_merged(golden.options());
  ASSERT_FALSE(report.same);
  EXPECT_THAT(report.differences[0].what, HasSubstr("adapter merged once, "));
  EXPECT_THAT(report.differences[0].what, HasSubstr("other not merged"));
}

// v5 base, the merged model as transformers 4 names it: one tensor per expert and projection.
TEST(VerifyMerged, the_other_generation_s_names) {
  const auto list = merge_cases();
  const Case* c = find_case(list, "qwen3_moe-bf16");
  if (c == nullptr) GTEST_SKIP() << "no such case in this golden data";
  const TemporaryFolder folder;
  Golden golden(*c, folder);
  const Loose merged = golden.merged("merged.safetensors");
  Loose v4{{}, merged.dtype};
  for (const auto& tensor : merged.tensors) {
    const auto at = tensor.name.find(".mlp.experts.");
    if (at == std::string::npos) {
      v4.tensors.push_back(tensor);
      continue;
    }
    const bool down = tensor.name.ends_with("down_proj");
    const std::int64_t rows = down ? tensor.shape[1] : tensor.shape[1] / 2, cols = tensor.shape[2];
    for (std::int64_t e = 0; e < tensor.shape[0]; ++e) {
      for (const std::string& projection :
           down ? std::vector<std::string>{"down_proj"} : std::vector<std::string>{"gate_proj", "up_proj"}) {
        const std::int64_t first = (e * tensor.shape[1] + (projection == "up_proj" ? rows : 0)) * cols;
        v4.tensors.push_back(
            {tensor.name.substr(0, at) + ".mlp.experts." + std::to_string(e) + "." + projection + ".weight",
             {rows, cols},
             {tensor.values.begin() + first, tensor.values.begin() + first + rows * cols}});
      }
    }
  }
  VerifyMergedReport report = golden.verify(v4);
  EXPECT_TRUE(report.same) << all_of(report);
  EXPECT_GT(report.bounds.all(), 0u);
  v4.at("model.layers.0.mlp.experts.3.up_proj.weight").values =
      std::vector<double>(v4.at("model.layers.0.mlp.experts.3.up_proj.weight").values.size(), 0.25);
  report = golden.verify(v4);
  ASSERT_EQ(report.num_differences, 1) << all_of(report);
  EXPECT_THAT(report.differences[0].tensor, HasSubstr("experts.3"));
}

// An adapter, merged, recovered, merged again: the same model up to what the rounding of the first merge took away.
TEST(Extract, merging_what_was_extracted_gives_the_model_again) {
  for (const Case& c : merge_cases()) {
    if (c.id.find("dora") != std::string::npos || c.id.find("lora_bias") != std::string::npos) continue;
    const TemporaryFolder folder;
    Golden golden(c, folder);
    golden.merged("best.safetensors").write(folder.path() / "merged", golden.model() / "config.json");
    ExtractOptions options;
    options.base = folder / "base";
    options.finetuned = folder / "merged";
    options.rank = 16;
    const LowRankResult result = plan_extract(options);
    const bool fp32 = c.json["base_dtype"] == "float32";
    const std::int64_t rank = c.id.find("two") != std::string::npos ? 6 : 3;
    for (const LowRankSite& site : result.sites) EXPECT_LE(site.rank, fp32 ? 2 * rank : 16) << c.id << " " << site.name;
    if (fp32) {
      EXPECT_LE(result.worst, 1e-4) << c.id << " " << result.where;
    }
    materialize(result.plan, folder.path() / "lora");
    VerifyMergedOptions verify;
    verify.merge.base = folder / "base";
    verify.merge.adapters = {{folder / "lora", 1}};
    verify.merged = folder / "merged";
    const VerifyMergedReport report = verify_merged(verify);
    // Rounding to bf16 is as large as a part of the delta itself: what matters is that no matrix was missed or scaled.
    for (const auto& difference : report.differences) {
      EXPECT_EQ(difference.kind, MergedDifference::Kind::different)
          << c.id << " " << difference.tensor << " " << difference.what;
      EXPECT_NEAR(difference.factor, 1, 0.05) << c.id << " " << difference.tensor;
    }
  }
}

TEST(Extract, finds_the_rank_in_fp32_and_leaves_out_what_did_not_change) {
  const auto list = merge_cases();
  const Case* c = find_case(list, "llama-fp32");
  if (c == nullptr) GTEST_SKIP() << "no such case in this golden data";
  const TemporaryFolder folder;
  Golden golden(*c, folder);
  Loose model = golden.merged("best.safetensors");
  model.write(folder.path() / "merged", golden.model() / "config.json");
  ExtractOptions options;
  options.base = folder / "base";
  options.finetuned = folder / "merged";
  options.rank = 8;
  const LowRankResult result = plan_extract(options);
  EXPECT_EQ(result.sites.size(), c->json["expect"]["changed"].size());
  for (const LowRankSite& site : result.sites) {
    EXPECT_EQ(site.rank, 3) << site.name;
    EXPECT_LE(site.relative, 1e-5) << site.name;
  }
  model.at("model.norm.weight").values[0] += 1;
  model.write(folder.path() / "merged", golden.model() / "config.json");
  try {
    plan_extract(options);
    FAIL() << "a changed norm was passed over";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM);
    EXPECT_THAT(error.what(), HasSubstr("model.norm.weight"));
  }
  options.ignore_unused = true;
  EXPECT_THAT(plan_extract(options).notes, ::testing::Contains(HasSubstr("model.norm.weight")));
  options.ignore_unused = false;
  options.modules_to_save = {"norm"};
  const LowRankResult saved = plan_extract(options);
  const auto& tensors = saved.plan.files[0].tensors;
  EXPECT_TRUE(std::any_of(tensors.begin(), tensors.end(),
                          [](const PlannedTensor& t) { return t.name == "base_model.model.model.norm.weight"; }));
}

}  // namespace
}  // namespace peft::testing
