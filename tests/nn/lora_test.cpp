// The factored path against the update written out, in fp64; PEFT's API on small models; errors.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>

#include "nn/golden_nn.h"
#include "nn/kernels/grouped.h"
#include "nn/lora/files/factors.h"
#include "nn/lora/sites/hooks.h"
#include "nn/lora/sites/site.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"
#include "peft/verbs.h"
#include "support/golden.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;

struct Problem {
  std::int64_t experts, rank, in, out, tokens, top_k;
};

struct Grouped {
  RowGroups groups;
  at::Tensor expert;
};
// Random choices, sorted: some experts get no row.
Grouped grouped(const Problem& p) {
  at::manual_seed(7);
  at::Tensor choice = at::randint(p.experts, {p.tokens * p.top_k}, at::kLong);
  if (p.experts > 2) choice = choice.masked_fill(choice.eq(1), 2);  // expert 1 never has one
  Grouped g{{}, std::get<0>(choice.sort())};
  const auto* e = g.expert.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < g.expert.size(0); ++i) {
    if (g.groups.hit.empty() || g.groups.hit.back() != e[i]) g.groups.hit.push_back(e[i]), g.groups.begin.push_back(i);
  }
  g.groups.begin.push_back(g.expert.size(0));
  g.expert = g.expert.to(device());
  return g;
}

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape, at::kDouble).to(device()).to(type);
}

class GroupedLora : public ::testing::TestWithParam<Problem> {};

// y = W_e x with W_e = base_e + s B_e A_e, built in full.
TEST_P(GroupedLora, GradientsAreThoseOfTheUpdateWrittenOut) {
  const Problem p = GetParam();
  const Grouped g = grouped(p);
  const std::int64_t rows = p.tokens * p.top_k;
  at::Tensor x = random({rows, p.in}, at::kDouble), weight = random({p.experts, p.out, p.in}, at::kDouble);
  FactorStack stack{random({p.experts, p.rank, p.in}, at::kDouble), random({p.experts, p.rank, p.out}, at::kDouble),
                    1.7};
  const at::Tensor direction = random({rows, p.out}, at::kDouble);
  std::vector<at::Tensor> leaves = {x, weight, stack.a, stack.b};
  for (at::Tensor& leaf : leaves) leaf.requires_grad_(true);
  const auto run = [&](const at::Tensor& y) {
    for (at::Tensor& leaf : leaves) leaf.mutable_grad() = at::Tensor();
    (y * direction).sum().backward();
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& leaf : leaves) gradients.push_back(leaf.grad().clone());
    return gradients;
  };
  const auto through = [&](const at::Tensor& w) {
    return at::bmm(w.index_select(0, g.expert), x.unsqueeze(2)).squeeze(2);
  };
  const at::Tensor written = through(weight + 1.7 * at::bmm(stack.b.transpose(1, 2), stack.a));
  const at::Tensor factored = add_grouped(through(weight), x, stack, g.groups);
  EXPECT_LE(max_difference(factored.detach(), written.detach()), 1e-11 * std::max(1.0, peak(written.detach())));
  const auto want = run(written), got = run(factored);
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    EXPECT_LE(max_difference(got[i], want[i]), 1e-11 * std::max(1.0, peak(want[i]))) << "leaf " << i;
  }
}

// Few rows go through own code, many through matrix products, recorded ones through the graph: one function.
TEST_P(GroupedLora, AllPathsAreOneFunction) {
  const Problem p = GetParam();
  const Grouped g = grouped(p);
  const std::int64_t rows = p.tokens * p.top_k;
  const at::Tensor x = random({rows, p.in}, at::kFloat), y = random({rows, p.out}, at::kFloat);
  const FactorStack stack{random({p.experts, p.rank, p.in}, at::kFloat), random({p.experts, p.rank, p.out}, at::kFloat),
                          0.3};
  const at::Tensor delta =
      at::bmm(stack.b.to(at::kDouble).transpose(1, 2), stack.a.to(at::kDouble)).index_select(0, g.expert);
  const at::Tensor want = y.to(at::kDouble) + 0.3 * at::bmm(delta, x.to(at::kDouble).unsqueeze(2)).squeeze(2);
  const double allowed = 4e-6 * std::max(1.0, peak(want));
  {
    const at::NoGradGuard no_grad;
    EXPECT_LE(max_difference(add_grouped(y.clone(), x, stack, g.groups), want), allowed);
    const at::Tensor half = add_grouped(y.to(at::kBFloat16), x.to(at::kBFloat16), stack, g.groups);
    EXPECT_EQ(half.scalar_type(), at::kFloat);  // rounded by the caller, once
    EXPECT_LE(max_difference(half, want), 0.05 * std::max(1.0, peak(want)));
  }
  FactorStack recorded{stack.a.clone().requires_grad_(true), stack.b.clone().requires_grad_(true), 0.3};
  EXPECT_LE(max_difference(add_grouped(y, x, recorded, g.groups).detach(), want), allowed);
}

INSTANTIATE_TEST_SUITE_P(Sizes, GroupedLora,
                         ::testing::Values(Problem{1, 1, 3, 5, 1, 1}, Problem{4, 2, 8, 6, 1, 2},
                                           Problem{8, 8, 40, 24, 1, 2}, Problem{8, 3, 7, 33, 17, 3},
                                           Problem{5, 5, 16, 16, 60, 1}, Problem{64, 9, 21, 17, 9, 8}),
                         [](const auto& test) {
                           const Problem& p = test.param;
                           return fmt::format("experts{}_rank{}_in{}_out{}_tokens{}_top{}", p.experts, p.rank, p.in,
                                              p.out, p.tokens, p.top_k);
                         });

// ---- the API ----
constexpr const char* kModel = "rt-qwen3_moe";

class LoraApi : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = golden_root() / "models" / kModel;
    if (!std::filesystem::exists(folder_)) GTEST_SKIP() << "no golden data";
    base_ = load(folder_);
    ids_ = at::tensor(std::vector<std::int64_t>{5, 9, 11, 3, 8, 2, 7, 1}, at::kLong).view({2, 4});
  }
  static LoraConfig config(const std::string& init = "false") {
    LoraConfig c;
    c.r = 4;
    c.lora_alpha = {10};
    c.target_modules = std::vector<std::string>{"q_proj", "v_proj"};
    c.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
    c.init_lora_weights = init;
    c.task_type = "CAUSAL_LM";
    return c;
  }
  static std::string message(const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  std::filesystem::path folder_;
  std::shared_ptr<CausalLM> base_;
  at::Tensor ids_;
};

TEST_F(LoraApi, NewAdapterStartsAsTheBase) {
  const at::Tensor plain = base_->logits(ids_);
  for (const char* init : {"true", "gaussian"}) {
    const auto model = get_peft_model(base_, config(init));
    EXPECT_TRUE(model->logits(ids_).equal(plain)) << init;
  }
  for (const char* init : {"orthogonal", "pissa", "pissa_niter_4", "olora"}) {
    const auto base = load(folder_);
    LoraConfig c = config(init);
    c.target_parameters.reset();
    const auto model = get_peft_model(base, c);
    EXPECT_LE(max_difference(model->logits(ids_), plain), 1e-4) << init;
    EXPECT_GT(model->get_delta_weight("model.layers.0.self_attn.q_proj.weight").abs().max().item<double>(),
              std::string(init) == "orthogonal" ? -1 : 1e-3);
  }
  const auto model = get_peft_model(base_, config("false"));
  EXPECT_GT(max_difference(model->logits(ids_), plain), 1e-3);
}

// PEFT has one way to start an embedding, whatever the name says.
TEST_F(LoraApi, EmbeddingsStartAsTheBase) {
  const at::Tensor plain = base_->logits(ids_);
  for (const char* init : {"Gaussian", "orthogonal", "pissa", "OLoRA"}) {
    LoraConfig c = config(init);
    c.target_parameters.reset();
    c.target_modules = std::vector<std::string>{"embed_tokens"};
    EXPECT_TRUE(get_peft_model(base_, c)->logits(ids_).equal(plain)) << init;
  }
}

TEST_F(LoraApi, OneSeedOneStart) {
  const auto a = get_peft_model(base_, config(), {.seed = 3})->state_dict();
  const auto b = get_peft_model(base_, config(), {.seed = 3})->state_dict();
  const auto c = get_peft_model(base_, config(), {.seed = 4})->state_dict();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(a[i].second.equal(b[i].second));
    EXPECT_FALSE(a[i].second.equal(c[i].second));
  }
}

// A model runs again as its base once its adapters are gone.
TEST_F(LoraApi, TheBaseIsLeftAsItWas) {
  const at::Tensor plain = base_->logits(ids_);
  { const auto model = get_peft_model(base_, config()); }
  EXPECT_TRUE(base_->logits(ids_).equal(plain));
}

TEST_F(LoraApi, ABaseHasOnePeftModelAtATime) {
  const at::Tensor plain = base_->logits(ids_);
  {
    const auto first = get_peft_model(base_, config());
    const at::Tensor logits = first->logits(ids_);
    EXPECT_NE(message([&] { get_peft_model(base_, config(), {.seed = 9}); }).find("has a PeftModel already"),
              std::string::npos);
    EXPECT_TRUE(first->logits(ids_).equal(logits));
    EXPECT_GT(max_difference(logits, plain), 1e-3);
    first->unload();
    EXPECT_EQ(message([&] { get_peft_model(base_, config()); }), "no error");
  }
  EXPECT_TRUE(base_->logits(ids_).equal(plain));
  EXPECT_NE(message([&] { PeftModel::from_pretrained(base_, "no such folder"); }), "no error");
  EXPECT_EQ(message([&] { get_peft_model(base_, config()); }), "no error");
}

TEST_F(LoraApi, AnUnknownKeyOfAFileIsTold) {
  const TemporaryFolder out;
  std::ofstream(out / "adapter_config.json") << R"({"peft_type": "LORA", "target_modules": ["q_proj"], "future": 1})";
  const auto model = get_peft_model(base_, LoraConfig::read(out / "adapter_config.json"));
  ASSERT_EQ(model->warnings().size(), 1);
  EXPECT_NE(model->warnings().front().find("future"), std::string::npos);
}

TEST_F(LoraApi, OnlyAdaptersAreTrained) {
  const auto model = get_peft_model(base_, config());
  model->forward({.ids = ids_, .mask = {}, .positions = {}}, {.training = true}).logits.square().mean().backward();
  for (const at::Tensor& tensor : model->trainable_parameters()) EXPECT_TRUE(tensor.grad().defined());
  for (const auto& [name, tensor] : base_->parameters()) EXPECT_FALSE(tensor.requires_grad()) << name;
}

TEST_F(LoraApi, SavedInEveryLayoutItIsTheSameFunction) {
  const auto model = get_peft_model(base_, config());
  const at::Tensor logits = model->logits(ids_);
  const TemporaryFolder out;
  for (const Layout layout :
       {Layout::peft_fused, Layout::peft_per_expert, Layout::unsloth_grouped, Layout::peft_fused_0_18}) {
    const std::string folder = out / std::string(info(layout).name);
    model->save_pretrained(folder, {.layout = layout, .sync = false});
    AdapterModelOptions options;
    options.read.layout = layout;
    const auto again = PeftModel::from_pretrained(load(folder_), folder, options);
    EXPECT_LE(max_difference(again->logits(ids_), logits), 2e-6 * peak(logits)) << info(layout).name;
  }
}

// The names and bytes of save_pretrained are those the core's encoder gives for the same factors.
TEST_F(LoraApi, TheFileIsTheEncoders) {
  const auto model = get_peft_model(base_, config());
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  InputOptions input_options;
  input_options.base = folder_.string();
  const Input input = peft::load(out / "saved", input_options);
  EXPECT_EQ(info(input.reading.layout).name, "peft-fused");
  ConvertOptions convert;
  convert.to = Layout::peft_fused;
  const Plan plan = plan_convert(input, convert);
  EXPECT_EQ(plan.exactness, Exactness::bit_exact);
  std::set<std::string> ours, theirs;
  for (const auto& [name, tensor] : model->state_dict()) ours.insert(name);
  for (const PlannedTensor& tensor : plan.files.front().tensors) theirs.insert(tensor.name);
  EXPECT_EQ(ours, theirs);
}

TEST_F(LoraApi, AdaptersAreAddedChosenAndDeleted) {
  const at::Tensor plain = base_->logits(ids_);
  const auto model = get_peft_model(base_, config());
  const at::Tensor first = model->logits(ids_);
  model->add_adapter("second", config(), {.seed = 9});
  EXPECT_TRUE(model->logits(ids_).equal(first));
  model->set_adapter("second");
  const at::Tensor second = model->logits(ids_);
  EXPECT_GT(max_difference(first, second), 1e-4);
  model->set_adapter({"default", "second"});
  const at::Tensor both = model->logits(ids_);
  model->add_weighted_adapter({"default", "second"}, {1, 1}, "sum", {.combination_type = "cat"});
  model->set_adapter("sum");
  EXPECT_LE(max_difference(model->logits(ids_), both), 1e-5 * peak(both));
  const at::Tensor mixed = model->logits(ids_, {}, {.adapter_names = {"second", "default"}});
  EXPECT_LE(max_difference(mixed.select(0, 0), second.select(0, 0)), 1e-5);
  EXPECT_LE(max_difference(mixed.select(0, 1), first.select(0, 1)), 1e-5);
  model->delete_adapter("sum");
  EXPECT_EQ(model->active_adapters(), std::vector<std::string>{"default"});
  model->delete_adapter("default");
  model->delete_adapter("second");
  EXPECT_TRUE(model->logits(ids_).equal(plain));
  EXPECT_NE(message([&] { model->set_adapter("second"); }).find("no adapter of this name"), std::string::npos);
}

TEST_F(LoraApi, SeveralAdaptersAreSavedSideBySide) {
  const auto model = get_peft_model(base_, config());
  model->add_adapter("second", config(), {.seed = 9});
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  model->set_adapter("second");
  const auto again = PeftModel::from_pretrained(load(folder_), out / "saved/second");
  EXPECT_TRUE(again->logits(ids_).equal(model->logits(ids_)));
}

TEST_F(LoraApi, MergingIsTakenBackBitForBit) {
  const at::Tensor plain = base_->logits(ids_);
  const auto model = get_peft_model(base_, config());
  const at::Tensor logits = model->logits(ids_);
  model->merge_adapter();
  EXPECT_LE(max_difference(model->logits(ids_), logits), 1e-5 * peak(logits));
  EXPECT_NE(message([&] { model->delete_adapter("default"); }).find("merged"), std::string::npos);
  EXPECT_TRUE(model->get_model_status().merged_adapters == std::vector<std::string>{"default"});
  {
    const auto disabled = model->disable_adapter();
    EXPECT_TRUE(model->logits(ids_).equal(plain));
  }
  EXPECT_TRUE(model->logits(ids_).equal(logits));
}

TEST_F(LoraApi, StatusAndCounts) {
  const auto model = get_peft_model(base_, config());
  const auto [trainable, all] = model->get_nb_trainable_parameters();
  EXPECT_EQ(all - trainable, base_->parameter_count());
  const auto layers = model->get_layer_status();
  ASSERT_FALSE(layers.empty());
  std::set<std::string> types;
  for (const LayerStatus& layer : layers) {
    types.insert(layer.module_type);
    EXPECT_EQ(layer.available_adapters, std::vector<std::string>{"default"});
    EXPECT_TRUE(layer.requires_grad.at("default") == true);
  }
  EXPECT_EQ(types, (std::set<std::string>{"lora.Linear", "lora.ParamWrapper"}));
  EXPECT_EQ(model->get_model_status().num_adapter_layers, static_cast<std::int64_t>(layers.size()));
}

TEST_F(LoraApi, WholeModulesBiasesAndTokens) {
  LoraConfig c = config();
  c.modules_to_save = {"lm_head", "norm"};
  c.trainable_token_indices = {{"", {5, 9}}};
  const at::Tensor plain = base_->logits(ids_);
  const auto model = get_peft_model(base_, c);
  const at::NoGradGuard no_grad;
  for (AdapterTensor& t : [&] { return model->adapter_tensors(); }()) {
    if (t.key.find("lora_") == std::string::npos) t.tensor.add_(0.25);
  }
  const at::Tensor logits = model->logits(ids_);
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  const auto again = PeftModel::from_pretrained(load(folder_), out / "saved");
  EXPECT_TRUE(again->logits(ids_).equal(logits));
  {
    const auto disabled = model->disable_adapter();
    EXPECT_TRUE(model->logits(ids_).equal(plain));
  }
  const auto merged = model->merge_and_unload();
  EXPECT_LE(max_difference(merged->logits(ids_), logits), 1e-5 * peak(logits));
}

TEST_F(LoraApi, DropoutActsInTrainingOnly) {
  LoraConfig c = config();
  c.target_parameters.reset();
  c.lora_dropout = 0.5;
  const auto model = get_peft_model(base_, c);
  const ForwardInput input{.ids = ids_, .mask = {}, .positions = {}};
  EXPECT_TRUE(model->logits(ids_).equal(model->logits(ids_)));
  const at::Tensor a = model->forward(input, {.training = true}).logits,
                   b = model->forward(input, {.training = true}).logits;
  EXPECT_GT(max_difference(a.detach(), b.detach()), 1e-4);
  model->unload();
  LoraConfig both = config();
  both.lora_dropout = 0.5;  // PEFT refuses it on parameters
  EXPECT_NE(message([&] { get_peft_model(base_, both); }).find("lora_dropout"), std::string::npos);
}

TEST_F(LoraApi, WhatIsNotImplementedIsRefusedByName) {
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"alora_invocation_tokens", "[1, 2]"},
                                                        {"layer_replication", "[[0, 1]]"},
                                                        {"use_qalora", "true"},
                                                        {"kasa_config", "{\"beta\": 1}"},
                                                        {"use_bdlora", "{\"nblocks\": 2}"},
                                                        {"lora_aplha", "16"}}) {
    LoraConfig c = config();
    c.set(key, value);
    EXPECT_NE(message([&] { get_peft_model(base_, c); }).find(key), std::string::npos) << key;
  }
  LoraConfig eva = config("eva");
  EXPECT_NE(message([&] { get_peft_model(base_, eva); }).find("init_lora_weights"), std::string::npos);
}

TEST_F(LoraApi, OneClearErrorForEachBadInput) {
  LoraConfig nothing = config();
  nothing.target_modules = std::vector<std::string>{"no_such_proj"};
  nothing.target_parameters.reset();
  EXPECT_NE(message([&] { get_peft_model(base_, nothing); }).find("CF_TARGET"), std::string::npos);
  const auto model = get_peft_model(base_, config());
  EXPECT_NE(message([&] { model->add_adapter("default", config()); }).find("there is an adapter of this name"),
            std::string::npos);
  EXPECT_NE(message([&] { model->add_adapter("__base__", config()); }).find("cannot be the name"), std::string::npos);
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  // Another model: its experts are not there, or its projections have other shapes.
  int others = 0;
  for (const char* other : {"qwen3_moe-HI-v5", "rt-llama"}) {
    if (!has_model(other)) continue;  // the repository's own selection has one of them
    const auto wrong = load_golden(other);
    EXPECT_NE(message([&] { PeftModel::from_pretrained(wrong, out / "saved"); }), "no error") << other;
    ++others;
  }
  EXPECT_GT(others, 0);
  // NaN in a factor: neither saved nor loaded.
  for (AdapterTensor& t : [&] { return model->adapter_tensors(); }()) {
    const at::NoGradGuard no_grad;
    t.tensor.view({-1})[0] = std::nan("");
    break;
  }
  EXPECT_NE(message([&] { model->save_pretrained(out / "nan"); }).find("NUM_NONFINITE"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(out / "nan"));
}

TEST_F(LoraApi, AMissingTargetIsNamed) {
  const auto model = get_peft_model(base_, config());
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  std::ifstream in(out / "saved/adapter_config.json");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto at = text.find("\"q_proj\"");
  ASSERT_NE(at, std::string::npos);
  std::ofstream(out / "saved/adapter_config.json") << text.replace(at, 8, "\"k_proj\",\n    \"q_proj\"");
  const std::string said = message([&] { PeftModel::from_pretrained(load(folder_), out / "saved"); });
  EXPECT_NE(said.find("LO_MISSING"), std::string::npos) << said;
  EXPECT_NE(said.find("k_proj"), std::string::npos) << said;
}

TEST_F(LoraApi, AChangedBaseIsAskedAbout) {
  LoraConfig c = config("pissa");
  c.target_parameters.reset();
  const auto model = get_peft_model(load(folder_), c);
  const at::Tensor logits = model->logits(ids_);
  const TemporaryFolder out;
  model->save_pretrained(out / "saved", {.sync = false});
  EXPECT_NE(message([&] { PeftModel::from_pretrained(base_, out / "saved"); }).find("init_lora_weights"),
            std::string::npos);
  AdapterModelOptions options;
  options.changed_base = ChangedBase::subtract;
  const auto again = PeftModel::from_pretrained(load(folder_), out / "saved", options);
  EXPECT_LE(max_difference(again->logits(ids_), logits), 1e-4);
}

TEST_F(LoraApi, AChangedBaseIsTakenOutOnSaving) {
  for (const std::string init : {"pissa", "olora"}) {
    for (const bool rslora : {false, true}) {
      LoraConfig c = config(init);
      c.target_parameters.reset();
      c.use_rslora = rslora;
      if (!rslora) c.rank_pattern = {{"v_proj", {3}}}, c.alpha_pattern = {{"v_proj", {5}}};
      const auto model = get_peft_model(load(folder_), c);
      const TemporaryFolder out;
      model->save_pretrained(out / "start", {.sync = false});
      {
        const at::NoGradGuard no_grad;
        for (const auto& tensor : model->adapter_tensors("default"))
          at::Tensor(tensor.tensor).add_(at::randn_like(tensor.tensor), 0.1);
      }
      const at::Tensor trained = model->logits(ids_);
      SaveOptions options{.sync = false};
      options.path_initial_model_for_weight_conversion = out / "start";
      model->save_pretrained(out / "plain", options);
      const auto again = PeftModel::from_pretrained(load(folder_), out / "plain");
      EXPECT_LE(max_difference(again->logits(ids_), trained), 1e-4 * peak(trained)) << init << rslora;
      EXPECT_GT(max_difference(base_->logits(ids_), trained), 1e-2 * peak(trained));
      options.path_initial_model_for_weight_conversion = out / "plain";  // a start of another rank
      EXPECT_NE(message([&] { model->save_pretrained(out / "never", options); }).find("LO_SHAPE"), std::string::npos);
      options.layout = Layout::unsloth_grouped;
      EXPECT_NE(message([&] { model->save_pretrained(out / "never", options); }).find("path_initial_model"),
                std::string::npos);
      EXPECT_FALSE(std::filesystem::exists(std::filesystem::path(std::string(out / "never"))));
    }
  }
  const auto plain = get_peft_model(load(folder_), config());
  SaveOptions options{.sync = false};
  options.path_initial_model_for_weight_conversion = "start";
  EXPECT_NE(message([&] { plain->save_pretrained("never", options); }).find("pissa_niter_N, olora, corda or lora_ga"),
            std::string::npos);
}

}  // namespace
}  // namespace peft::nn::testing
