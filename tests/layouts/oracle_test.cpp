// Small examples worked out by hand: what every layout means, to the last number. The oracle of the golden runner and
// the library must both give these. Numbers are small integers, so all comparisons are exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "peft/config.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

// A[p][q] = ((7p + 3q + 1 + t) mod 11) - 5 and B[o][c] = ((5o + 2c + 3 + t) mod 13) - 6: no symmetry to hide behind.
Matrix generated_a(std::int64_t rows, std::int64_t cols, std::int64_t t) {
  Matrix m(rows, cols);
  for (std::int64_t p = 0; p < rows; ++p)
    for (std::int64_t q = 0; q < cols; ++q) m.at(p, q) = static_cast<double>((7 * p + 3 * q + 1 + t) % 11 - 5);
  return m;
}
Matrix generated_b(std::int64_t rows, std::int64_t cols, std::int64_t t) {
  Matrix m(rows, cols);
  for (std::int64_t o = 0; o < rows; ++o)
    for (std::int64_t c = 0; c < cols; ++c) m.at(o, c) = static_cast<double>((5 * o + 2 * c + 3 + t) % 13 - 6);
  return m;
}
Matrix matrix(std::vector<std::vector<double>> rows) {
  Matrix m(static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size()));
  m.values.clear();
  for (const auto& row : rows) m.values.insert(m.values.end(), row.begin(), row.end());
  return m;
}
Matrix stacked(const Matrix& top, const Matrix& bottom) {
  Matrix m(top.rows + bottom.rows, top.cols, top.values);
  m.values.insert(m.values.begin() + top.rows * top.cols, bottom.values.begin(), bottom.values.end());
  m.values.resize(static_cast<std::size_t>(m.rows * m.cols));
  return m;
}
::testing::AssertionResult equal(const Matrix& want, const Matrix& got) {
  if (same_shape(want, got) && want.values == got.values) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << fmt::format("expected [{}, {}] {}, got [{}, {}] {}", want.rows, want.cols,
                                                      fmt::join(want.values, " "), got.rows, got.cols,
                                                      fmt::join(got.values, " "));
}

constexpr const char* kExperts = "base_model.model.model.layers.0.mlp.experts";
constexpr const char* kSite = "model.layers.0.mlp.experts";

// A base model, an adapter on it, and both readings.
class Scene {
 public:
  explicit Scene(TinyModel model) : model_(std::move(model)) { write_model(folder_.path() / "base", model_); }

  void adapter(std::vector<NewMatrix> tensors, Json config) {
    if (!config.contains("peft_type")) config["peft_type"] = "LORA";
    if (!config.contains("target_modules")) config["target_modules"] = Json::array();
    write_adapter(folder_.path() / "adapter", std::move(tensors), Dtype::f32, config);
  }
  // lora_A and lora_B of "….experts" + suffix.
  static std::vector<NewMatrix> slot(const std::string& suffix, Matrix a, Matrix b) {
    return {{kExperts + suffix + ".lora_A.weight", std::move(a)}, {kExperts + suffix + ".lora_B.weight", std::move(b)}};
  }

  Input read(ReadOptions read = {}) const { return load(folder_ / "adapter", options(std::move(read))); }
  OracleFactors library(ReadOptions how = {}) const { return factors_of(read(std::move(how))); }
  OracleFactors oracle(OracleOptions how = {}, const std::string& which = "adapter") const {
    const OracleAdapter adapter = read_oracle(folder_.path() / which, facts(), how);
    EXPECT_TRUE(adapter.problems.empty()) << fmt::format("{}", fmt::join(adapter.problems, "; "));
    return adapter.factors;
  }
  std::shared_ptr<const TensorFile> converted(Layout to, ReadOptions how = {}) const {
    ConvertOptions convert_options;
    convert_options.input = options(how);
    convert(read(how), convert_options, to, folder_ / "converted");
    return TensorFile::open(folder_ / "converted/adapter_model.safetensors");
  }
  Json converted_config() const { return read_json(folder_ / "converted/adapter_config.json"); }
  ModelFacts facts() const {
    const bool gpt_oss = model_.model_type == "gpt_oss";
    return {model_.model_type, model_.experts, model_.hidden, model_.intermediate, gpt_oss, gpt_oss};
  }

 private:
  InputOptions options(ReadOptions read) const {
    InputOptions options;
    options.base = folder_ / "base";
    options.read = std::move(read);
    return options;
  }
  TemporaryFolder folder_;
  TinyModel model_;
};

// dP[e] of gate_up_proj stored [E, 2I, H].
Matrix gate_up(const OracleFactors& factors, std::int64_t expert) {
  const std::string site = fmt::format("{}.{}.", kSite, expert);
  return stacked(factors.at(site + "gate").delta(), factors.at(site + "up").delta());
}
Matrix down(const OracleFactors& factors, std::int64_t expert) {
  return factors.at(fmt::format("{}.{}.down", kSite, expert)).delta();
}

Json fused_config(std::int64_t r, std::vector<std::string> parameters, const char* version = "0.21.2") {
  return {{"r", r}, {"lora_alpha", r}, {"target_parameters", std::move(parameters)}, {"peft_version", version}};
}

const Matrix kT1[] = {matrix({{21, -12, -12}, {-23, 23, 14}, {24, 6, -12}, {19, -24, -12}}),
                      matrix({{-24, -12, 0}, {11, 14, 17}, {-6, -12, -18}, {29, 14, -1}}),
                      matrix({{14, -1, -27}, {14, 29, -22}, {-12, -6, 22}, {14, 11, -25}})};

Scene natural_scene() {
  Scene scene({"mixtral", 3, 2, 3});
  scene.adapter(Scene::slot("", generated_a(6, 3, 0), generated_b(4, 6, 0)),
                fused_config(2, {"mlp.experts.gate_up_proj"}));
  return scene;
}

TEST(Fused, NaturalFactorsGiveTheDelta) {
  const Scene scene = natural_scene();
  for (std::int64_t e = 0; e < 3; ++e) {
    EXPECT_TRUE(equal(kT1[e], gate_up(scene.oracle(), e)));
    EXPECT_TRUE(equal(kT1[e], gate_up(scene.library(), e)));
  }
}

TEST(Fused, GroupedPackingIsAnotherDeltaAndOnlyReadWhenAskedFor) {
  const Scene scene = natural_scene();
  const Matrix grouped = matrix({{9, 8, -4}, {4, -22, -4}, {12, 26, -4}, {7, -4, -4}});
  EXPECT_FALSE(equal(grouped, gate_up(scene.library(), 0)));
  EXPECT_TRUE(equal(grouped, gate_up(scene.oracle({.grouped_by_expert = true, .square = ""}), 0)));
  ReadOptions how;
  how.b_packing = BPacking::grouped_by_expert;
  EXPECT_TRUE(equal(grouped, gate_up(scene.library(how), 0)));
}

const Matrix kT3[] = {matrix({{-32, -17, 24}, {19, 9, -14}, {4, 24, -8}, {-22, -27, 20}}),
                      matrix({{15, -8, -18}, {12, -20, 0}, {-24, 23, 18}, {17, 0, -30}}),
                      matrix({{20, -12, 8}, {-26, 21, -23}, {5, -12, 23}, {14, -12, 14}})};

TEST(Fused, ReversedFactorsGiveTheTransposedDelta) {
  Scene scene({"mixtral", 3, 2, 3});
  scene.adapter(Scene::slot("", generated_a(6, 4, 2), generated_b(3, 6, 4)),
                fused_config(2, {"mlp.experts.gate_up_proj"}, "0.18.1"));
  for (std::int64_t e = 0; e < 3; ++e) {
    EXPECT_TRUE(equal(kT3[e], gate_up(scene.oracle(), e)));
    EXPECT_TRUE(equal(kT3[e], gate_up(scene.library(), e)));
  }
  EXPECT_EQ(scene.read().reading.layout, Layout::peft_fused_0_18);
}

TEST(Fused, TurningRoundSwapsFactorsPerExpertNotTheWholeTensors) {
  Scene scene({"mixtral", 3, 2, 3});
  const Matrix a = generated_a(6, 4, 2), b = generated_b(3, 6, 4);
  scene.adapter(Scene::slot("", a, b), fused_config(2, {"mlp.experts.gate_up_proj"}, "0.18.1"));
  scene.converted(Layout::peft_fused);
  for (std::int64_t e = 0; e < 3; ++e) EXPECT_TRUE(equal(kT3[e], gate_up(scene.oracle({}, "converted"), e)));

  Scene naive({"mixtral", 3, 2, 3});
  naive.adapter(Scene::slot("", transposed(b), transposed(a)), fused_config(2, {"mlp.experts.gate_up_proj"}));
  EXPECT_TRUE(equal(matrix({{-11, 3, 4}, {1, 6, -2}, {13, 9, -8}, {-19, 1, 8}}), gate_up(naive.library(), 0)));
}

TEST(PerExpert, FusingPutsGateAndUpOnTheDiagonal) {
  Scene scene({"mixtral", 2, 2, 2});
  const std::string experts = "base_model.model.model.layers.0.block_sparse_moe.experts.";
  scene.adapter({{experts + "0.w1.lora_A.weight", matrix({{-3, 0}})},
                 {experts + "0.w1.lora_B.weight", matrix({{-1}, {4}})},
                 {experts + "1.w1.lora_A.weight", matrix({{-4, -1}})},
                 {experts + "1.w1.lora_B.weight", matrix({{-4}, {1}})},
                 {experts + "0.w3.lora_A.weight", matrix({{0, 3}})},
                 {experts + "0.w3.lora_B.weight", matrix({{3}, {-5}})},
                 {experts + "1.w3.lora_A.weight", matrix({{-1, 2}})},
                 {experts + "1.w3.lora_B.weight", matrix({{0}, {5}})}},
                {{"r", 1}, {"lora_alpha", 1}, {"target_modules", {"w1", "w3"}}});
  const auto file = scene.converted(Layout::peft_fused);
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_TRUE(equal(matrix({{-3, 0}, {0, 3}, {-4, -1}, {-1, 2}}),
                    matrix_of(*file, *file->find(std::string(kExperts) + ".lora_A.weight"))));
  EXPECT_TRUE(equal(matrix({{-1, -4, 0, 0}, {4, 1, 0, 0}, {0, 0, 3, 0}, {0, 0, -5, 5}}),
                    matrix_of(*file, *file->find(std::string(kExperts) + ".lora_B.weight"))));
  const OracleFactors fused = scene.oracle({}, "converted");
  EXPECT_TRUE(equal(matrix({{3, 0}, {-12, 0}, {0, 9}, {0, -15}}), gate_up(fused, 0)));
  EXPECT_TRUE(equal(matrix({{16, 4}, {-4, -1}, {0, 0}, {-5, 10}}), gate_up(fused, 1)));
}

// gpt_oss with H = I: the version does not say which transformers wrote the file.
Scene square_scene(bool with_sibling) {
  Scene scene({"gpt_oss", 2, 2, 2});
  auto tensors = Scene::slot("", matrix({{1, 2}, {3, 4}}), matrix({{5, 6}, {7, 8}}));
  std::vector<std::string> parameters = {"mlp.experts.down_proj"};
  if (with_sibling) {
    parameters.emplace_back("mlp.experts.gate_up_proj");
    for (NewMatrix& sibling : Scene::slot(".base_layer", generated_a(2, 2, 0), generated_b(4, 2, 0)))
      tensors.push_back(std::move(sibling));
  }
  scene.adapter(std::move(tensors), fused_config(1, std::move(parameters)));
  return scene;
}

TEST(Square, TheTwoReadingsAreTransposes) {
  const Scene scene = square_scene(false);
  const Matrix swapped = matrix({{5, 10}, {7, 14}}), not_swapped = matrix({{5, 7}, {10, 14}});
  ReadOptions out_in, in_out;
  out_in.orientation = "out-in";
  in_out.orientation = "in-out";
  // gpt_oss stores [in, out]: the delta of the layer is dP's transpose.
  EXPECT_TRUE(equal(transposed(swapped), down(scene.oracle({.grouped_by_expert = false, .square = "out_in"}), 0)));
  EXPECT_TRUE(equal(transposed(swapped), down(scene.library(out_in), 0)));
  EXPECT_TRUE(equal(transposed(not_swapped), down(scene.oracle({.grouped_by_expert = false, .square = "in_out"}), 0)));
  EXPECT_TRUE(equal(transposed(not_swapped), down(scene.library(in_out), 0)));
  EXPECT_TRUE(equal(matrix({{18, 24}, {24, 32}}), down(scene.library(in_out), 1)));  // symmetric: both alike
}

TEST(Square, AloneItIsDoubtfulBesideASiblingItIsNot) {
  const auto warns = [](const Input& input) {
    return std::ranges::any_of(input.reading.factors.warnings,
                               [](const std::string& w) { return w.find("--orientation") != std::string::npos; });
  };
  const Input alone = square_scene(false).read(), beside = square_scene(true).read();
  EXPECT_TRUE(warns(alone)) << "transformers 4 and 5 write this shape both ways";
  EXPECT_FALSE(warns(beside));
  // Alone: as written on transformers 5. Beside gate_up_proj, whose sides differ: as that one says.
  const Matrix in_out = transposed(matrix({{5, 7}, {10, 14}}));
  EXPECT_TRUE(equal(in_out, down(factors_of(alone), 0)));
  EXPECT_TRUE(equal(in_out, down(factors_of(beside), 0)));
}

// The sibling, not the version, decides: here it is held reversed, as transformers 4 with PEFT 0.19.1 would.
TEST(Square, AReversedSiblingTurnsIt) {
  Scene scene({"gpt_oss", 2, 2, 2});
  auto tensors = Scene::slot("", matrix({{1, 2}, {3, 4}}), matrix({{5, 6}, {7, 8}}));
  for (NewMatrix& t : Scene::slot(".base_layer", generated_a(2, 4, 0), generated_b(2, 2, 0)))
    tensors.push_back(std::move(t));
  scene.adapter(std::move(tensors), fused_config(1, {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}));
  EXPECT_TRUE(equal(transposed(matrix({{5, 10}, {7, 14}})), down(scene.library(), 0)));
}

TEST(Fused, GptOssRowsAlternate) {
  Scene scene({"gpt_oss", 2, 2, 2});
  scene.adapter(Scene::slot("", matrix({{1, 1}, {0, 0}}), matrix({{1, 0}, {10, 0}, {2, 0}, {20, 0}})),
                fused_config(1, {"mlp.experts.gate_up_proj"}));
  for (const OracleFactors& factors : {scene.oracle(), scene.library()}) {
    EXPECT_TRUE(equal(matrix({{1, 1}, {2, 2}}), factors.at("model.layers.0.mlp.experts.0.gate").delta()));
    EXPECT_TRUE(equal(matrix({{10, 10}, {20, 20}}), factors.at("model.layers.0.mlp.experts.0.up").delta()));
  }
}

TEST(Unsloth, RepackingMovesColumns) {
  const Scene scene = natural_scene();
  ReadOptions how;
  how.b_packing = BPacking::grouped_by_expert;
  const auto file = scene.converted(Layout::peft_fused, how);
  const Matrix before = generated_b(4, 6, 0),
               after = matrix_of(*file, *file->find(std::string(kExperts) + ".lora_B.weight"));
  const std::int64_t from[] = {0, 2, 4, 1, 3, 5};
  for (std::int64_t c = 0; c < 6; ++c) EXPECT_TRUE(equal(cols_of(before, from[c], 1), cols_of(after, c, 1))) << c;
}

TEST(Unsloth, PackingsAgreeOnlyForOneExpertOrRankOne) {
  for (std::int64_t experts = 1; experts <= 3; ++experts) {
    for (std::int64_t rank = 1; rank <= 3; ++rank) {
      std::vector<ExpertFactors> factors;
      for (std::int64_t e = 0; e < experts; ++e)
        factors.push_back({generated_a(rank, 3, e), generated_b(4, rank, 5 * e)});
      const bool same = fuse(factors, false, false).b.values == fuse(factors, false, true).b.values;
      EXPECT_EQ(same, experts == 1 || rank == 1) << experts << " experts, rank " << rank;
    }
  }
}

std::vector<NewMatrix> per_expert(const std::string& experts, const std::vector<std::string>& projections,
                                  const std::vector<std::int64_t>& indices, std::int64_t rank, const TinyModel& model) {
  std::vector<NewMatrix> tensors;
  std::int64_t t = 0;
  for (const std::int64_t e : indices)
    for (const std::string& projection : projections) {
      const bool is_down = projection == "w2" || projection == "down_proj";
      const std::string key = fmt::format("base_model.model.{}.{}.{}", experts, e, projection);
      tensors.push_back({key + ".lora_A.weight", generated_a(rank, is_down ? model.intermediate : model.hidden, ++t)});
      tensors.push_back({key + ".lora_B.weight", generated_b(is_down ? model.hidden : model.intermediate, rank, ++t)});
    }
  return tensors;
}

TEST(PerExpert, RsloraKeepsItsScaleWhenTheRankDoubles) {
  const TinyModel model{"mixtral", 12, 9, 2};
  Scene scene(model);
  scene.adapter(per_expert("model.layers.0.block_sparse_moe.experts", {"w1", "w3"}, {0, 1}, 8, model),
                {{"r", 8}, {"lora_alpha", 16}, {"use_rslora", true}, {"target_modules", {"w1", "w3"}}});
  scene.converted(Layout::peft_fused);
  const Json config = scene.converted_config();
  const ScaleRule rule(config);
  const std::string name = std::string(kSite) + ".gate_up_proj";
  EXPECT_EQ(rule.rank(name), 16);
  EXPECT_NEAR(rule.scale(name, 16), 16 / std::sqrt(8.0), 1e-12);  // doubling r and alpha would give 8
}

TEST(Fused, ShapesTellTheOrientation) {
  for (const bool reversed : {true, false}) {
    Scene scene({"mixtral", 8, 3, 2});
    auto tensors = Scene::slot(".base_layer", generated_a(4, reversed ? 6 : 8, 0), generated_b(reversed ? 8 : 6, 4, 0));
    for (NewMatrix& t : Scene::slot("", generated_a(4, reversed ? 8 : 3, 1), generated_b(reversed ? 3 : 8, 4, 1)))
      tensors.push_back(std::move(t));
    scene.adapter(std::move(tensors), fused_config(2, {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
                                                   reversed ? "0.18.1" : "0.21.2"));
    EXPECT_EQ(scene.read().reading.layout, reversed ? Layout::peft_fused_0_18 : Layout::peft_fused);
    EXPECT_NO_THROW(compare_factors(scene.oracle(), scene.library()));
  }
}

TEST(Slots, TheConfigAndTheShapesSayWhichParameterALoneSlotIs) {
  const auto lone_down = Scene::slot("", generated_a(6, 2, 0), generated_b(3, 6, 0));  // [H, I]: down_proj
  Scene named({"mixtral", 3, 2, 3}), unnamed({"mixtral", 3, 2, 3}), wrong({"mixtral", 3, 2, 3});
  named.adapter(lone_down, fused_config(2, {"mlp.experts.down_proj"}));
  unnamed.adapter(lone_down, {{"r", 2}, {"lora_alpha", 2}, {"peft_version", "0.21.2"}});
  wrong.adapter(lone_down, fused_config(2, {"mlp.experts.gate_up_proj"}));
  EXPECT_TRUE(named.library().contains("model.layers.0.mlp.experts.2.down"));
  EXPECT_NO_THROW(compare_factors(named.library(), unnamed.library()));
  EXPECT_THROW(wrong.read(), Error);
  EXPECT_TRUE(natural_scene().library().contains("model.layers.0.mlp.experts.2.gate"));
}

TEST(Slots, TheOrderOfTheListMeansNothing) {
  std::optional<OracleFactors> first;
  for (const std::vector<std::string>& order :
       {std::vector<std::string>{"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
        std::vector<std::string>{"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}}) {
    Scene scene({"mixtral", 8, 3, 2});
    auto tensors = Scene::slot(".base_layer", generated_a(4, 8, 0), generated_b(6, 4, 0));
    for (NewMatrix& t : Scene::slot("", generated_a(4, 3, 1), generated_b(8, 4, 1))) tensors.push_back(std::move(t));
    scene.adapter(std::move(tensors), fused_config(2, order));
    if (first) {
      EXPECT_NO_THROW(compare_factors(*first, scene.library()));
    }
    first = scene.library();
  }
}

TEST(OneExpert, ReversedFactorsAreTransposedLikeAnyOther) {
  for (const bool reversed : {true, false}) {
    Scene scene({"mixtral", 3, 2, 1});
    const Matrix a = generated_a(2, reversed ? 4 : 3, 0), b = generated_b(reversed ? 3 : 4, 2, 0);
    scene.adapter(Scene::slot("", a, b), fused_config(2, {"mlp.experts.gate_up_proj"}, reversed ? "0.18.1" : "0.21.2"));
    const Matrix product_ba = product(b, a);
    EXPECT_TRUE(equal(reversed ? transposed(product_ba) : product_ba, gate_up(scene.library(), 0)));
    EXPECT_TRUE(equal(reversed ? transposed(product_ba) : product_ba, gate_up(scene.oracle(), 0)));
  }
}

TEST(Patterns, MatchWholeNamesOrTheirEnds) {
  const auto config = AdapterConfig::parse(
      R"({"peft_type": "LORA", "r": 3, "rank_pattern": {".*\\.gate_up_proj": 6, "foo": 7}})", "adapter_config.json");
  EXPECT_EQ(config.rank_for("model.layers.0.mlp.experts.gate_up_proj"), 6);
  EXPECT_EQ(config.rank_for("model.layers.0.mlp.experts.gate_up_proj_bias"), 3);
  EXPECT_EQ(config.rank_for("model.foo"), 7);
  EXPECT_EQ(config.rank_for("model.foobar"), 3);
}

TEST(Unfusing, AGeneralFactorGivesGateAndUpTheSameA) {
  const Scene scene = natural_scene();
  const auto file = scene.converted(Layout::peft_per_expert);
  const std::string expert = "base_model.model.model.layers.0.block_sparse_moe.experts.1.";
  const Matrix a = rows_of(generated_a(6, 3, 0), 2, 2);
  EXPECT_TRUE(equal(a, matrix_of(*file, *file->find(expert + "w1.lora_A.weight"))));
  EXPECT_TRUE(equal(a, matrix_of(*file, *file->find(expert + "w3.lora_A.weight"))));
}

// Gate and up kept apart in a fused file: rank 2 of 1 + 1, B block-diagonal; `corner` is a value off the diagonal.
Scene block_diagonal(double corner) {
  Scene scene({"mixtral", 3, 2, 3});
  Matrix b(4, 6);
  for (std::int64_t e = 0; e < 3; ++e)
    for (std::int64_t i = 0; i < 2; ++i) {
      b.at(i, e) = static_cast<double>(1 + e + i);
      b.at(2 + i, 3 + e) = static_cast<double>(5 + e - 2 * i);
      b.at(i, 3 + e) = b.at(2 + i, e) = corner;
    }
  scene.adapter(Scene::slot("", generated_a(6, 3, 0), b), fused_config(2, {"mlp.experts.gate_up_proj"}));
  return scene;
}

TEST(Unfusing, BlocksAreFoundByValueSoMinusZeroIsZero) {
  for (const double zero : {0.0, -0.0}) {
    const auto file = block_diagonal(zero).converted(Layout::peft_per_expert);
    const std::string key = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w3.lora_A.weight";
    EXPECT_TRUE(equal(rows_of(generated_a(6, 3, 0), 5, 1), matrix_of(*file, *file->find(key))));
  }
}

TEST(Unfusing, NaNIsNeverTakenForAZeroBlock) {
  const Scene scene = block_diagonal(std::nan(""));
  std::shared_ptr<const TensorFile> file;
  try {
    file = scene.converted(Layout::peft_per_expert);
  } catch (const Error&) {
    return;  // refused: fine too
  }
  const std::string key = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w3.lora_A.weight";
  EXPECT_EQ(file->find(key)->shape[0], 2);
}

TEST(PerExpert, AMissingExpertIsZeroAndShiftsNobody) {
  const TinyModel model{"mixtral", 5, 4, 3};
  Scene scene(model);
  scene.adapter(per_expert("model.layers.0.block_sparse_moe.experts", {"w1", "w3", "w2"}, {0, 2}, 2, model),
                {{"r", 2}, {"lora_alpha", 2}, {"target_modules", {"w1", "w2", "w3"}}});
  const OracleFactors before = scene.oracle();
  scene.converted(Layout::peft_fused);
  const OracleFactors after = scene.oracle({}, "converted");
  EXPECT_NO_THROW(compare_factors(before, after));
  EXPECT_TRUE(equal(Matrix(4, 5), after.at("model.layers.0.mlp.experts.1.gate").delta()));
  EXPECT_TRUE(equal(before.at("model.layers.0.mlp.experts.2.down").delta(),
                    after.at("model.layers.0.mlp.experts.2.down").delta()));
}

TEST(PerExpert, SharedExpertsAreNotFused) {
  const TinyModel model{"qwen2_moe", 5, 4, 3};
  Scene scene(model);
  auto tensors = per_expert("model.layers.0.mlp.experts", {"gate_proj", "up_proj"}, {0, 1, 2}, 2, model);
  const std::string shared = "base_model.model.model.layers.0.mlp.shared_expert.gate_proj";
  tensors.push_back({shared + ".lora_A.weight", generated_a(2, 5, 9)});
  tensors.push_back({shared + ".lora_B.weight", generated_b(5, 2, 9)});
  scene.adapter(std::move(tensors), {{"r", 2}, {"lora_alpha", 2}, {"target_modules", {"gate_proj", "up_proj"}}});
  const auto file = scene.converted(Layout::peft_fused);
  ASSERT_NE(file->find(shared + ".lora_A.weight"), nullptr);
  EXPECT_TRUE(equal(generated_a(2, 5, 9), matrix_of(*file, *file->find(shared + ".lora_A.weight"))));
  EXPECT_NO_THROW(compare_factors(scene.oracle(), scene.oracle({}, "converted")));
}

TEST(PerExpert, ExpertTenFollowsExpertNine) {
  const TinyModel model{"mixtral", 5, 4, 11, 11};
  Scene scene(model);
  std::vector<std::int64_t> all(11);
  for (std::int64_t e = 0; e < 11; ++e) all[static_cast<std::size_t>(e)] = e;
  std::vector<NewMatrix> tensors;
  for (const std::int64_t layer : {2, 10}) {
    const auto more = per_expert(fmt::format("model.layers.{}.block_sparse_moe.experts", layer), {"w2"}, all, 2, model);
    tensors.insert(tensors.end(), more.begin(), more.end());
  }
  scene.adapter(std::move(tensors),
                {{"r", 2}, {"lora_alpha", 2}, {"target_modules", {"w2"}}, {"layers_to_transform", nullptr}});
  scene.converted(Layout::peft_fused);
  EXPECT_NO_THROW(compare_factors(scene.oracle(), scene.oracle({}, "converted")));
  std::vector<std::string> order;
  for (const Factor& factor : scene.read().reading.factors.factors) order.push_back(describe(factor.site));
  ASSERT_EQ(order.size(), 22u);
  EXPECT_EQ(order[10], "model.layers.2.mlp.experts.10.down");
  EXPECT_EQ(order[11], "model.layers.10.mlp.experts.0.down");
}

}  // namespace
}  // namespace peft::testing
