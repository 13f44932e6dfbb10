// Combining, resizing: against the real PEFT, against weighted sums, and as properties of random adapters.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "peft/error.h"
#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/golden.h"
#include "support/matrix.h"
#include "support/model_writer.h"
#include "support/oracle.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

double norm(const Matrix& m) {
  double sum = 0;
  for (const double v : m.values) sum += v * v;
  return std::sqrt(sum);
}

double relative_distance(const Matrix& x, const Matrix& y) {
  Matrix difference = x;
  for (std::size_t i = 0; i < x.values.size(); ++i) difference.values[i] -= y.values[i];
  return norm(difference) / std::max(norm(x), norm(y));
}

using Deltas = std::map<std::string, Matrix>;

Deltas deltas_of(const fs::path& adapter, const ModelFacts& facts = {}) {
  const OracleAdapter read = read_oracle(adapter, facts);
  EXPECT_TRUE(read.problems.empty()) << (read.problems.empty() ? "" : read.problems.front());
  Deltas deltas;
  for (const auto& [name, factor] : read.factors) deltas[name] = factor.delta();
  return deltas;
}

void expect_same(const Deltas& got, const Deltas& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (const auto& [name, matrix] : want) {
    ASSERT_TRUE(got.contains(name)) << what << " " << name;
    EXPECT_LE(relative_distance(got.at(name), matrix), tolerance) << what << " " << name;
  }
}

Deltas read_deltas_of(const fs::path& path, const std::string& ending) {
  const auto file = TensorFile::open(path.string());
  Deltas deltas;
  for (const TensorInfo& tensor : file->tensors()) {
    std::string name(tensor.name);
    if (name.ends_with(ending)) name.resize(name.size() - ending.size());
    deltas[name] = matrix_of(*file, tensor);
  }
  return deltas;
}

fs::path written(const TemporaryFolder& folder, const LowRankResult& result, const std::string& name) {
  materialize(result.plan, folder.path() / name);
  return folder.path() / name;
}

// PEFT's own results where they are right, and what they should be where they are not: golden/merge/*-weighted-*.
TEST(Combine, golden_weighted_sums) {
  std::size_t seen = 0;
  for (const Case& c : cases(golden_root(), "merge")) {
    if (!c.json.at("expect").contains("combined")) continue;
    ++seen;
    const Json& expect = c.json["expect"]["combined"];
    CombineOptions options;
    options.type = parse_combine_type(expect["type"].get<std::string>()).value();
    const std::vector<WeightedAdapter> adapters = {{(c.folder / "adapter").string(), expect["weights"][0]},
                                                   {(c.folder / "adapter/other").string(), expect["weights"][1]}};
    const LowRankResult result = plan_combine(adapters, options);
    const TemporaryFolder folder;
    expect_same(deltas_of(written(folder, result, "out")),
                read_deltas_of(c.folder / "expected/right_delta.safetensors", ".weight"), 2e-7, c.id);
    if (options.type != CombineType::svd) {
      EXPECT_LE(result.worst, 1e-7) << c.id;
    }
  }
  if (seen == 0) GTEST_SKIP() << "no combination in this golden data";
}

// Types that prune, against the real PEFT 0.21.2 with our random masks: tests/low_rank/make_cases.py.
TEST(Combine, operators_are_those_of_peft) {
  const fs::path root = fs::path(PEFT_SOURCE_DIR) / "tests/low_rank";
  const Json list = read_json(root / "cases.json");
  ASSERT_EQ(list.size(), 16u);
  for (const Json& c : list) {
    CombineOptions options;
    options.type = parse_combine_type(c["type"].get<std::string>()).value();
    options.density = c["density"].get<double>();
    options.majority_by_count = c["majority_sign_method"] == "frequency";
    options.seed = c["seed"];
    options.dtype = Dtype::f64;
    const std::vector<WeightedAdapter> adapters = {{(root / "adapter").string(), c["weights"][0]},
                                                   {(root / "adapter/other").string(), c["weights"][1]}};
    const TemporaryFolder folder;
    const std::string id = c["id"];
    // PEFT's weights are a float32 tensor: 0.7 is not 0.7 there.
    expect_same(deltas_of(written(folder, plan_combine(adapters, options), "out")),
                read_deltas_of(root / "expected" / (id + ".safetensors"), ""), 2e-7, id);
  }
}

struct Made {
  std::string path;
  Deltas deltas;
};

Matrix random_matrix(std::mt19937_64& random, std::int64_t rows, std::int64_t cols) {
  Matrix m(rows, cols);
  for (double& v : m.values) v = static_cast<double>(static_cast<std::int64_t>(random() % 255) - 127) / 128;
  return m;
}

constexpr std::int64_t kHidden = 20, kIntermediate = 14, kExperts = 3;
const ModelFacts kFacts = {"qwen3_moe", kExperts, kHidden, kIntermediate, false, false};

// A per-expert adapter of a qwen3_moe with some of its experts and dense modules.
Made make_adapter(const TemporaryFolder& folder, const std::string& name, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto rank = static_cast<std::int64_t>(random() % 4 + 1), alpha = static_cast<std::int64_t>(random() % 7 + 1);
  std::vector<NewMatrix> tensors;
  std::set<std::string> targets;
  const auto add = [&](const std::string& module, std::int64_t out, std::int64_t in) {
    if (random() % 3 == 0) return;
    tensors.push_back({"base_model.model." + module + ".lora_A.weight", random_matrix(random, rank, in)});
    tensors.push_back({"base_model.model." + module + ".lora_B.weight", random_matrix(random, out, rank)});
    targets.insert(module.substr(module.rfind('.') + 1));
  };
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + "self_attn.q_proj", 12, kHidden);
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const std::string expert = layer + "mlp.experts." + std::to_string(e) + ".";
      add(expert + "gate_proj", kIntermediate, kHidden);
      add(expert + "up_proj", kIntermediate, kHidden);
      add(expert + "down_proj", kHidden, kIntermediate);
    }
  }
  if (tensors.empty()) return make_adapter(folder, name, seed + 1);
  const Json config = {{"peft_type", "LORA"},
                       {"r", rank},
                       {"lora_alpha", alpha},
                       {"target_modules", targets},
                       {"use_rslora", random() % 2 == 0},
                       {"rank_pattern", Json::object()},
                       {"alpha_pattern", Json::object()}};
  const fs::path path = folder.path() / name;
  write_adapter(path, tensors, Dtype::f32, config);
  return {path.string(), deltas_of(path, kFacts)};
}

std::string model_folder(const TemporaryFolder& folder) {
  write_model(folder.path() / "model", {"qwen3_moe", kHidden, kIntermediate, kExperts, 2, 2});
  return (folder.path() / "model").string();
}

Deltas weighted_sum(const std::vector<Made>& adapters, const std::vector<double>& weights) {
  Deltas sum;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    for (const auto& [name, delta] : adapters[i].deltas) {
      Matrix& to = sum.try_emplace(name, Matrix(delta.rows, delta.cols)).first->second;
      for (std::size_t k = 0; k < to.values.size(); ++k) to.values[k] += weights[i] * delta.values[k];
    }
  }
  std::erase_if(sum, [](const auto& entry) { return norm(entry.second) == 0; });
  return sum;
}

// Adds the zero matrices that a fused layout holds for absent experts.
Deltas without_zeros(Deltas deltas) {
  std::erase_if(deltas, [](const auto& entry) { return norm(entry.second) == 0; });
  return deltas;
}

void expect_sum(std::uint64_t seed, CombineType type, std::optional<Layout> to, Layout second) {
  const TemporaryFolder folder;
  const std::string base = model_folder(folder);
  std::vector<Made> made = {make_adapter(folder, "a", seed), make_adapter(folder, "b", seed + 1000)};
  CombineOptions options;
  options.input.base = base;
  if (second != Layout::peft_per_expert) {  // the second adapter in another layout
    ConvertOptions convert;
    convert.input = options.input, convert.to = second;
    materialize(plan_convert(load(made[1].path, options.input), convert), folder.path() / "b5");
    made[1].path = folder / "b5";
  }
  options.type = type;
  options.to = to;
  const std::vector<double> weights = {0.75, -1.5};
  const std::vector<WeightedAdapter> adapters = {{made[0].path, weights[0]}, {made[1].path, weights[1]}};
  const LowRankResult result = plan_combine(adapters, options);
  RC_ASSERT(result.worst < 1e-6);
  const Deltas got = without_zeros(
      deltas_of(written(folder, result, "out"), to && *to != Layout::peft_per_expert ? in_v5(kFacts) : kFacts));
  const Deltas want = weighted_sum(made, weights);
  RC_ASSERT(got.size() == want.size());
  for (const auto& [name, matrix] : want) {
    RC_ASSERT(got.contains(name));
    RC_ASSERT(relative_distance(got.at(name), matrix) < 1e-6);
  }
}

RC_GTEST_PROP(Combine, cat_and_linear_are_the_weighted_sum_whatever_the_layouts, ()) {
  const auto seed = *rc::gen::arbitrary<std::uint32_t>();
  const auto type = *rc::gen::element(CombineType::cat, CombineType::linear);
  const auto to = *rc::gen::element(std::optional<Layout>(), std::optional(Layout::peft_per_expert),
                                    std::optional(Layout::peft_fused));
  const auto second = *rc::gen::element(Layout::peft_per_expert, Layout::peft_fused, Layout::unsloth_grouped,
                                        Layout::tinker, Layout::mlx);
  expect_sum(seed, type, to, second);
}

RC_GTEST_PROP(Resize, at_the_full_rank_is_the_same_adapter, ()) {
  const TemporaryFolder folder;
  const Made made = make_adapter(folder, "a", *rc::gen::arbitrary<std::uint32_t>());
  ResizeOptions options;
  options.input.base = model_folder(folder);
  options.rank = 8;
  const LowRankResult result = plan_resize(made.path, options);
  RC_ASSERT(result.worst < 2e-7);
  const Deltas got = deltas_of(written(folder, result, "out"), kFacts);
  RC_ASSERT(got.size() == without_zeros(made.deltas).size());
  for (const auto& [name, matrix] : got) RC_ASSERT(relative_distance(made.deltas.at(name), matrix) < 2e-7);
}

// The same error as numpy would find for the best cut: every singular value beyond the rank, no more.
TEST(Resize, a_cut_is_the_best_there_is_and_its_error_is_the_one_reported) {
  const TemporaryFolder folder;
  Matrix a(4, 6), b(5, 4);
  for (std::int64_t k = 0; k < 4; ++k) {  // singular values 8, 4, 2, 1 along the axes
    a.at(k, k) = 1;
    b.at(k, k) = std::ldexp(8, static_cast<int>(-k));
  }
  write_adapter(folder.path() / "a",
                {{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", a},
                 {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", b}},
                Dtype::f32, {{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 4}, {"target_modules", {"q_proj"}}});
  ResizeOptions options;
  options.rank = 2;
  const LowRankResult result = plan_resize(folder / "a", options);
  ASSERT_EQ(result.sites.size(), 1u);
  EXPECT_EQ(result.sites[0].rank, 2);
  EXPECT_NEAR(result.sites[0].norm, std::sqrt(85.0), 1e-12);
  EXPECT_NEAR(result.sites[0].relative, std::sqrt(5.0 / 85.0), 1e-6);
  EXPECT_EQ(result.plan.exactness, Exactness::lossy);
}

// Half of an adapter and its other half, and an adapter at its full rank, are the adapter: in the basis of an SVD, and
// in whatever dtype the result is rounded to.
TEST(Resize, every_golden_adapter_at_full_rank_verifies_as_the_same_function) {
  constexpr std::array kDtypes = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64};
  std::size_t seen = 0;
  for (const char* group : {"convert", "native"}) {
    for (const Case& c : cases(golden_root(), group)) {
      const std::string adapter = (c.folder / "adapter").string();
      std::optional<Input> input;
      try {
        input = load(adapter, {});
      } catch (const Error&) {
        continue;  // not without its base
      }
      ResizeOptions resize;
      resize.rank = 64;
      resize.dtype = kDtypes[seen++ % kDtypes.size()];
      const TemporaryFolder folder;
      std::vector<fs::path> results = {written(folder, plan_resize(adapter, resize), "resized")};
      CombineOptions combine;
      combine.type = CombineType::linear;
      combine.dtype = resize.dtype;
      try {
        const std::array<WeightedAdapter, 2> halves = {WeightedAdapter{adapter, 0.5}, WeightedAdapter{adapter, 0.5}};
        results.push_back(written(folder, plan_combine(halves, combine), "combined"));
      } catch (const Error&) {
        // DoRA and the like are not combined
      }
      for (const fs::path& result : results) {
        const VerifyReport report = verify(adapter, result.string(), {});
        EXPECT_TRUE(report.same) << c.id << " " << result << " "
                                 << (report.differences.empty() ? "" : report.differences[0].what);
        EXPECT_LE(report.largest_relative, 0.02) << c.id;
      }
    }
  }
  EXPECT_GE(seen, 20u);
}

TEST(Combine, bytes_do_not_depend_on_threads) {
  const TemporaryFolder folder;
  const Made a = make_adapter(folder, "a", 1), b = make_adapter(folder, "b", 2);
  CombineOptions options;
  options.input.base = model_folder(folder);
  options.type = CombineType::dare_ties_svd;
  options.density = 0.5;
  options.svd_rank = 3;
  const std::vector<WeightedAdapter> adapters = {{a.path, 1}, {b.path, 0.5}};
  options.threads = 1;
  const auto one = execute_in_memory(plan_combine(adapters, options).plan);
  options.threads = 4;
  const auto four = execute_in_memory(plan_combine(adapters, options).plan);
  EXPECT_EQ(one, four);
}

std::string problem(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return std::string(info(error.code()).name) + " " + error.what();
  }
  return "no error";
}

TEST(Combine, what_has_no_sum_or_makes_no_sense_is_refused_with_a_reason) {
  const TemporaryFolder folder;
  const Matrix a2(2, 6, std::vector<double>(12, 1)), b2(5, 2, std::vector<double>(10, 1)),
      a3(3, 6, std::vector<double>(18, 1)), b3(5, 3, std::vector<double>(15, 1));
  const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.";
  const Json config = {{"peft_type", "LORA"}, {"r", 2}, {"lora_alpha", 2}, {"target_modules", {"q_proj"}}};
  Json three = config, dora = config;
  three["r"] = 3;
  dora["use_dora"] = true;
  write_adapter(folder.path() / "two", {{q + "lora_A.weight", a2}, {q + "lora_B.weight", b2}}, Dtype::f32, config);
  write_adapter(folder.path() / "three", {{q + "lora_A.weight", a3}, {q + "lora_B.weight", b3}}, Dtype::f32, three);
  write_adapter(folder.path() / "dora",
                {{q + "lora_A.weight", a2},
                 {q + "lora_B.weight", b2},
                 {q + "lora_magnitude_vector", Matrix(1, 5, {1, 1, 1, 1, 1})}},
                Dtype::f32, dora);
  const auto combine = [&](const std::string& second, double weight, CombineType type, std::optional<double> density,
                           std::int64_t rank = 0) {
    CombineOptions options;
    options.type = type;
    options.density = density;
    options.svd_rank = rank;
    const std::vector<WeightedAdapter> adapters = {{folder / "two", 1}, {folder / second, weight}};
    return problem([&] { plan_combine(adapters, options); });
  };
  EXPECT_EQ(combine("three", 1, CombineType::linear, std::nullopt), "no error");
  EXPECT_NE(combine("three", 1, CombineType::ties, 0.5).find("LO_RANK"), std::string::npos);
  EXPECT_EQ(combine("three", 1, CombineType::ties_svd, 0.5), "no error");
  EXPECT_NE(combine("two", 1, CombineType::ties, std::nullopt).find("--density"), std::string::npos);
  EXPECT_NE(combine("two", 1, CombineType::cat, 0.5).find("--density"), std::string::npos);
  EXPECT_NE(combine("two", 1, CombineType::ties, 1.5).find("--density"), std::string::npos);
  EXPECT_NE(combine("two", 1, CombineType::cat, std::nullopt, 4).find("--svd-rank"), std::string::npos);
  EXPECT_NE(combine("two", -1, CombineType::linear, std::nullopt).find("LO_NONE"), std::string::npos) << "a - a";
  EXPECT_NE(combine("dora", 1, CombineType::cat, std::nullopt).find("CF_UNSUP"), std::string::npos);
}

}  // namespace
}  // namespace peft::testing
