// Models as such: their modules against the real classes', caches, long inputs, errors.
#include "peft/nn/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "nn/golden_nn.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;

// rt-* folders of golden/models whose names are those of transformers 5.
std::vector<std::string> models() {
  std::vector<std::string> names;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(golden_root() / "models", status)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("rt-") && !name.ends_with("-v4")) names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

std::string path_of(const std::string& model) { return (golden_root() / "models" / model).string(); }
Json json_of(const std::string& file) { return Json::parse(safetensors::read_text_file(file)); }

at::Tensor random_ids(std::int64_t rows, std::int64_t tokens) {
  at::manual_seed(5);
  return at::randint(60, {rows, tokens}, at::kLong);
}

class Model : public ::testing::TestWithParam<std::string> {};

// Names, order, shapes and classes as facts.json has them from the real class; without weights.
TEST_P(Model, HasTheModulesOfTheRealClass) {
  const auto model = init_model(path_of(GetParam()), {.dtype = at::kFloat, .device = "meta"});
  const auto facts = nlohmann::ordered_json::parse(safetensors::read_text_file(path_of(GetParam()) + "/facts.json"));
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> wanted, got;
  for (const auto& [name, parameter] : facts["parameters"].items()) wanted.emplace_back(name, parameter["shape"]);
  for (const auto& [name, tensor] : model->parameters()) got.emplace_back(name, tensor.sizes().vec());
  EXPECT_EQ(got, wanted);
  for (const auto& module : model->impl().modules.all()) {
    EXPECT_EQ(facts["modules"].value(module->name, ""), module->class_name) << module->name;
  }
}

TEST_P(Model, ACacheChangesNothing) {
  const auto model = load_golden(GetParam());
  const at::Tensor ids = random_ids(2, 150);
  const at::Tensor all = model->logits(ids);
  const auto cache = model->new_cache();
  std::vector<at::Tensor> parts;
  std::int64_t at = 0;
  for (const std::int64_t count : {70, 1, 1, 30, 1, 47}) {
    parts.push_back(model->forward({.ids = ids.narrow(1, at, count), .cache = cache.get()}, {}).logits);
    at += count;
  }
  EXPECT_LE(max_difference(at::cat(parts, 1), all), 2e-4 * peak(all));
}

// Attention in blocks of queries, experts in parts, against all at once, which recording does.
TEST_P(Model, LongInputsAreTheSameInBlocks) {
  const auto model = load_golden(GetParam());
  const at::Tensor ids = random_ids(1, 2500);
  const Recorder ignore = [](const std::string&, const at::Tensor&) {};
  ForwardContext context;
  context.recorder = &ignore;
  const at::NoGradGuard no_gradients;
  const at::Tensor whole = model->forward({.ids = ids}, context).logits, blocks = model->logits(ids);
  EXPECT_LE(max_difference(blocks, whole), 1e-4 * peak(whole));
}

TEST_P(Model, TheLastLogitsAlone) {
  const auto model = load_golden(GetParam());
  const at::Tensor ids = random_ids(3, 9), all = model->logits(ids);
  const at::NoGradGuard no_gradients;
  const at::Tensor last = model->forward({.ids = ids, .logits_to_keep = 2}, {}).logits;
  EXPECT_LE(max_difference(last, all.narrow(1, 7, 2)), 1e-5 * peak(all));
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Golden, Model, ::testing::ValuesIn(models()), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Model);

// The loss as the paper writes it: E times the sum over experts of (share of choices) * (mean probability).
TEST(AuxLoss, IsTheFormulaOnTheRoutersLogits) {
  if (!has_model("rt-mixtral")) GTEST_SKIP() << "not in this selection of the golden data";
  const auto model = load_golden("rt-mixtral");
  const at::Tensor ids = random_ids(2, 9);
  at::Tensor mask = at::ones({2, 9}, at::kLong);
  mask.select(0, 1).narrow(0, 0, 3).zero_();
  Tensors recorded;
  const Recorder recorder = [&recorded](const std::string& name, const at::Tensor& value) { recorded[name] = value; };
  ForwardContext context;
  context.recorder = &recorder;
  const at::NoGradGuard no_gradients;
  const at::Tensor loss = model->forward({.ids = ids, .mask = mask, .want_aux_loss = true}, context).aux_loss;
  const Json config = json_of(path_of("rt-mixtral") + "/config.json");
  const std::int64_t experts = config["num_local_experts"], top_k = config["num_experts_per_tok"];
  const auto count = static_cast<std::size_t>(experts);
  std::vector<double> share(count, 0), probability(count, 0);
  double rows = 0;
  for (const char* layer : {"layers.0.router.logits", "layers.1.router.logits"}) {
    const at::Tensor p = at::softmax(recorded.at(layer).to(at::kDouble), -1);
    const at::Tensor chosen = std::get<1>(p.topk(top_k, -1));
    for (std::int64_t row = 0; row < 18; ++row) {
      if (mask.view({-1})[row].item<std::int64_t>() == 0) continue;
      ++rows;
      for (std::int64_t e = 0; e < experts; ++e) probability[static_cast<std::size_t>(e)] += p[row][e].item<double>();
      for (std::int64_t k = 0; k < top_k; ++k) ++share[static_cast<std::size_t>(chosen[row][k].item<std::int64_t>())];
    }
  }
  double expected = 0;
  for (std::size_t e = 0; e < count; ++e) expected += share[e] / rows * (probability[e] / rows);
  EXPECT_NEAR(loss.item<double>(), static_cast<double>(experts) * expected, 1e-5);
}

void expect_error(ErrorCode code, const std::string& text, const std::function<void()>& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected " << text;
  } catch (const Error& error) {
    EXPECT_EQ(info(error.code()).name, info(code).name) << error.what();
    EXPECT_THAT(error.what(), ::testing::HasSubstr(text));
  }
}

class Errors : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_model("rt-qwen3_moe")) GTEST_SKIP() << "not in this selection of the golden data";
    folder_ = fs::temp_directory_path() /
              ("peft-nn-" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    for (const char* file : {"config.json", "model.safetensors"})
      fs::copy_file(fs::path(path_of("rt-qwen3_moe")) / file, folder_ / file);
    fs::permissions(folder_ / "model.safetensors", fs::perms::owner_write, fs::perm_options::add);
    fs::permissions(folder_ / "config.json", fs::perms::owner_write, fs::perm_options::add);
    config_ = json_of((folder_ / "config.json").string());
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Loads with a changed config.
  void expect(ErrorCode code, const std::string& text, const std::function<void(Json&)>& change) {
    Json config = config_;
    change(config);
    std::ofstream(folder_ / "config.json") << config.dump();
    expect_error(code, text, [&] { load_model(folder_.string()); });
  }

  fs::path folder_;
  Json config_;
};

TEST_F(Errors, OfConfigs) {
  expect(ErrorCode::MD_FORM, "hidden_act", [](Json& c) { c["hidden_act"] = "snake"; });
  expect(ErrorCode::MD_FORM, "rotary embedding that is not implemented",
         [](Json& c) { c["rope_parameters"]["rope_type"] = "longrope"; });
  expect(ErrorCode::MD_FORM, "factor", [](Json& c) { c["rope_parameters"]["rope_type"] = "yarn"; });
  expect(ErrorCode::MD_FORM, "hidden_size", [](Json& c) { c.erase("hidden_size"); });
  expect(ErrorCode::MD_FORM, "num_experts_per_tok", [](Json& c) { c["num_experts_per_tok"] = 13; });
  expect(ErrorCode::MD_FORM, "num_attention_heads", [](Json& c) { c["num_key_value_heads"] = 5; });
  expect(ErrorCode::MD_FORM, "num_hidden_layers", [](Json& c) { c["num_hidden_layers"] = 1000000; });
  expect(ErrorCode::MD_FORM, "vocab_size", [](Json& c) { c["vocab_size"] = -1; });
  expect(ErrorCode::MD_FAMILY, "do not run here", [](Json& c) { c["model_type"] = "gpt2"; });
  expect(ErrorCode::MD_FORM, "dtype", [](Json& c) { c["dtype"] = "float8"; });
}

TEST_F(Errors, OfWeightsThatAreNotTheModels) {
  expect(ErrorCode::MD_WEIGHTS, "model.layers.2.", [](Json& c) { c["num_hidden_layers"] = 3; });
  expect(ErrorCode::MD_WEIGHTS, "model.layers.1.", [](Json& c) { c["num_hidden_layers"] = 1; });
  expect(ErrorCode::LO_SHAPE, "another shape", [](Json& c) { c["vocab_size"] = 68; });
}

TEST_F(Errors, NaNInAWeightIsNamed) {
  const auto file = folder_ / "model.safetensors";
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  stream.seekp(-4, std::ios::end);
  stream.write(reinterpret_cast<const char*>(&nan), 4);
  stream.close();
  expect_error(ErrorCode::NUM_NONFINITE, "NaN", [&] { load_model(folder_.string()); });
}

TEST_F(Errors, OfIdsAndMasks) {
  const auto model = load_model(path_of("rt-qwen3_moe"));
  const at::Tensor ids = random_ids(2, 5);
  expect_error(ErrorCode::USAGE, "ids[1][2]", [&] {
    at::Tensor bad = ids.clone();
    bad[1][2] = model->vocab_size();
    model->logits(bad);
  });
  expect_error(ErrorCode::USAGE, "vocabulary", [&] { model->logits(ids - 100); });
  expect_error(ErrorCode::USAGE, "[2, 5]", [&] { model->logits(ids, at::ones({2, 4}, at::kLong)); });
  expect_error(ErrorCode::USAGE, "0 and 1", [&] { model->logits(ids, at::full({2, 5}, 2, at::kLong)); });
  expect_error(ErrorCode::USAGE, "token ids", [&] { model->logits(at::zeros({2, 0}, at::kLong)); });
  const auto at_positions = [&](const at::Tensor& positions) {
    return model->forward({.ids = ids, .mask = {}, .positions = positions}, {}).logits;
  };
  const at::Tensor five = at::arange(5, at::kLong), plain = at_positions({});
  for (const at::Tensor& positions : {five, five.unsqueeze(0), five.repeat({2, 1})})
    EXPECT_TRUE(at::equal(at_positions(positions), plain));
  for (const at::Tensor& positions : {at::arange(4, at::kLong), five.repeat({3, 1}), five.view({5, 1}), five[0]})
    expect_error(ErrorCode::USAGE, "positions", [&] { at_positions(positions); });
  if (has_model("rt-qwen3_5_moe")) {
    const auto composite = load_model(path_of("rt-qwen3_5_moe"));
    const std::int64_t image = json_of(path_of("rt-qwen3_5_moe") + "/config.json")["image_token_id"];
    expect_error(ErrorCode::USAGE, "image", [&] { composite->logits(at::full({1, 2}, image, at::kLong)); });
  }
  const auto shapes = init_model(path_of("rt-qwen3_moe"), {.device = "meta"});
  expect_error(ErrorCode::USAGE, "shapes only", [&] { shapes->logits(ids); });
  for (const char* device : {"toaster", "meta", "xla", "cuda:99"})
    expect_error(ErrorCode::USAGE, "device", [&] { load_model(path_of("rt-qwen3_moe"), {.device = device}); });
}

TEST(Init, IsSeeded) {
  if (!has_model("rt-qwen3_5_moe")) GTEST_SKIP() << "not in this selection of the golden data";
  const std::string folder = path_of("rt-qwen3_5_moe");
  const auto a = init_model(folder, {.seed = 1}), b = init_model(folder, {.seed = 1}),
             c = init_model(folder, {.seed = 2});
  const at::Tensor ids = random_ids(1, 7);
  EXPECT_TRUE(a->logits(ids).equal(b->logits(ids)));
  EXPECT_FALSE(a->logits(ids).equal(c->logits(ids)));
  EXPECT_TRUE(a->logits(ids).isfinite().all().item<bool>());
}

TEST(Sampling, IsSeededAndStaysInsideItsLimits) {
  if (!has_model("rt-mixtral")) GTEST_SKIP() << "not in this selection of the golden data";
  const auto model = load_golden("rt-mixtral");
  const at::Tensor ids = random_ids(1, 7);
  const GenerateOptions greedy{.max_new_tokens = 12};
  const auto draw = [&](GenerateOptions options) { return generate(*model, ids, {}, options); };
  GenerateOptions hot{.max_new_tokens = 12, .temperature = 3, .seed = 1};
  EXPECT_EQ(draw(hot), draw(hot));
  EXPECT_NE(draw(hot), draw(greedy));
  hot.top_k = 1;
  EXPECT_EQ(draw(hot), draw(greedy));
  hot.top_k = 0, hot.top_p = 1e-6;
  EXPECT_EQ(draw(hot), draw(greedy));
}

TEST(Eos, EndsASequenceAndPadsIt) {
  if (!has_model("rt-mixtral")) GTEST_SKIP() << "not in this selection of the golden data";
  const auto model = load_golden("rt-mixtral");
  const at::Tensor ids = random_ids(2, 7);
  const auto free = generate(*model, ids, {}, {.max_new_tokens = 12});
  const std::int64_t end = free[0][3];
  const auto ended = generate(*model, ids, {}, {.max_new_tokens = 12, .eos_token_ids = {end}, .pad_token_id = 0});
  const auto first = static_cast<std::size_t>(std::ranges::find(free[0], end) - free[0].begin());
  for (std::size_t i = 0; i < ended[0].size(); ++i) EXPECT_EQ(ended[0][i], i <= first ? free[0][i] : 0) << i;
}

}  // namespace
}  // namespace peft::nn::testing
