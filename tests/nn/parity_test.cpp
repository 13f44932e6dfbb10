// golden/parity: corners of the real PEFT and transformers, and what belongs to them: tied embeddings, trainable
// tokens, adapters by how they started, heads that no language model has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nn/golden_nn.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"
#include "support/model_writer.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;
using peft::testing::read_file;
using peft::testing::read_json;
using peft::testing::TemporaryFolder;
using peft::testing::write_file;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::string kInput = "model.embed_tokens", kOutput = "lm_head";

std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// ---- golden ----
std::vector<std::string> with_logits() {
  std::vector<std::string> names;
  for (const std::string& name : cases("parity")) {
    if (case_json("parity", name)["expect"]["result"] == "logits") names.push_back(name);
  }
  return names;
}

class Parity : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<CausalLM> base() const {
    return fs::exists(folder_ / "base") ? load(folder_ / "base") : load_golden(json_["model"]);
  }
  Json json_ = case_json("parity", GetParam());
  fs::path folder_ = golden_root() / "parity" / GetParam();
  at::Tensor ids_ = ids_tensor(json_["input_ids"]);
};

TEST_P(Parity, LogitsAndWarnings) {
  const Tensors wanted = read_tensors(folder_ / "expected/logits.safetensors");
  const double tolerance = allowed(json_["expect"]["tolerance"]);
  const auto plain = base();
  EXPECT_LE(max_difference(plain->logits(ids_), wanted.at("base.logits")), tolerance);
  EXPECT_EQ(plain->warnings().empty(), !json_["expect"].value("warning", false));
  if (!wanted.contains("lora.logits")) return;
  const std::string adapter = (folder_ / "adapter").string();
  const auto model = PeftModel::from_pretrained(plain, adapter);
  const at::Tensor logits = model->logits(ids_);
  EXPECT_LE(max_difference(logits, wanted.at("lora.logits")), tolerance);
  const at::Tensor merged = wanted.contains("merged.logits") ? wanted.at("merged.logits") : wanted.at("lora.logits");
  model->merge_adapter();
  EXPECT_LE(max_difference(model->logits(ids_), merged), tolerance);
  model->unmerge_adapter();
  EXPECT_TRUE(model->logits(ids_).equal(logits));
  EXPECT_LE(max_difference(model->merge_and_unload()->logits(ids_), merged), tolerance);
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Golden, Parity, ::testing::ValuesIn(with_logits()), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Parity);

// ---- tied embeddings ----
class Embeddings : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_model("rt-llama-tied") || !has_model("rt-llama")) GTEST_SKIP() << "no golden data";
    tied_ = load_golden("rt-llama-tied");
    own_ = load_golden("rt-llama");
  }
  // Adapters with values: tokens' rows are moved away from the base's.
  static LoraConfig on(std::vector<std::string> modules,
                       std::vector<std::pair<std::string, std::vector<std::int64_t>>> tokens = {}) {
    LoraConfig c;
    c.r = 3;
    c.lora_alpha = {5};
    c.init_lora_weights = "false";
    c.task_type = "CAUSAL_LM";
    c.target_modules = std::move(modules);
    if (!tokens.empty()) c.trainable_token_indices = {tokens.begin(), tokens.end()};
    return c;
  }
  static void move_rows(PeftModel& model, const std::string& adapter = "default", double by = 0.3) {
    const at::NoGradGuard no_grad;
    at::manual_seed(5);
    for (AdapterTensor& t : [&] { return model.adapter_tensors(adapter); }()) {
      if (t.key.find("trainable_tokens_delta") != std::string::npos) t.tensor.add_(at::randn_like(t.tensor), by);
    }
  }
  std::unique_ptr<PeftModel> with(const std::shared_ptr<CausalLM>& base, const LoraConfig& config) const {
    auto model = get_peft_model(base, config);
    move_rows(*model);
    return model;
  }
  // Merged or not, the same function; taken out again, the same bits.
  void expect_merges(PeftModel& model, const std::string& what) const {
    const at::Tensor logits = model.logits(ids_);
    const double tolerance = 1e-5 * peak(logits);
    model.merge_adapter();
    EXPECT_LE(max_difference(model.logits(ids_), logits), tolerance) << what;
    model.unmerge_adapter();
    EXPECT_TRUE(model.logits(ids_).equal(logits)) << what;
    model.merge_adapter({.safe_merge = true});
    {
      const auto off = model.disable_adapter();
      EXPECT_GT(max_difference(model.logits(ids_), logits), 1e-3) << what;
    }
    EXPECT_TRUE(model.logits(ids_).equal(logits)) << what;
    EXPECT_LE(max_difference(model.merge_and_unload()->logits(ids_), logits), tolerance) << what;
  }
  std::shared_ptr<CausalLM> tied_, own_;
  at::Tensor ids_ = at::tensor(std::vector<std::int64_t>{54, 19, 55, 11, 10, 6, 2, 5}, at::kLong).view({2, 4});
};

// The model rt-llama-tied, with other tensors for its embeddings.
void write_tied(const fs::path& folder, const std::vector<std::string>& embeddings) {
  const fs::path source = golden_root() / "models/rt-llama-tied";
  std::vector<peft::testing::Stored> tensors;
  for (const auto& [name, found] : peft::testing::tensors_in(source)) {
    const bool embedding = name == kInput + ".weight";
    if (!embedding) tensors.push_back(peft::testing::stored_bytes(name, found.dtype, found.shape, found.bytes));
    for (const std::string& copy : embedding ? embeddings : std::vector<std::string>{}) {
      tensors.push_back(peft::testing::stored_bytes(copy + ".weight", found.dtype, found.shape, found.bytes));
    }
  }
  peft::testing::write_base(folder, read_json(source / "config.json"), {tensors});
}

TEST_F(Embeddings, AHeadOfTheSameValuesIsTied) {
  const TemporaryFolder folder;
  for (const auto& embeddings : std::vector<std::vector<std::string>>{{kInput, kOutput}, {kOutput}}) {
    write_tied(folder.path() / "base", embeddings);
    const auto model = load(folder.path() / "base");
    EXPECT_EQ(model->parameter_count(), tied_->parameter_count());
    EXPECT_THAT(model->warnings(), IsEmpty());
    EXPECT_TRUE(model->logits(ids_).equal(tied_->logits(ids_)));
    fs::remove_all(folder.path() / "base");
  }
}

TEST_F(Embeddings, MergingOnOneOfTwoTiedEmbeddingsUntiesThem) {
  for (const auto& modules : std::vector<std::vector<std::string>>{{kInput}, {kOutput}, {kInput, kOutput}}) {
    const auto base = load_golden("rt-llama-tied");
    const auto model = get_peft_model(base, on(modules));
    EXPECT_THAT(model->warnings(), Contains(HasSubstr("tie_word_embeddings")));
    expect_merges(*model, modules.front());
    EXPECT_THAT(model->warnings(), Contains(HasSubstr("only one of them changes")));
    EXPECT_EQ(base->parameters().back().first, "lm_head.weight");
  }
  const auto other = get_peft_model(tied_, on({"q_proj"}));
  expect_merges(*other, "q_proj");
  EXPECT_THAT(other->warnings(), Not(Contains(HasSubstr("tie_word_embeddings"))));
  EXPECT_NE(tied_->parameters().back().first, "lm_head.weight");
}

// PEFT saves the embedding beside the factors; loaded again it is the base's value in both places.
TEST_F(Embeddings, ASavedTiedEmbeddingMergesToo) {
  const TemporaryFolder folder;
  get_peft_model(tied_, on({kInput}))->save_pretrained(folder / "saved", {.sync = false});
  const auto model = PeftModel::from_pretrained(tied_, folder / "saved");
  expect_merges(*model, "saved");
}

TEST_F(Embeddings, ACopyOfATiedEmbeddingStaysACopyWhenMerged) {
  LoraConfig c = on({"q_proj"});
  c.modules_to_save = {"lm_head"};
  const auto model = get_peft_model(tied_, c);
  const at::NoGradGuard no_grad;
  for (AdapterTensor& t : [&] { return model->adapter_tensors(); }()) {
    if (t.key.find("lm_head") != std::string::npos) t.tensor.add_(0.25);
  }
  expect_merges(*model, "modules_to_save");
  EXPECT_EQ(tied_->parameters().back().first, "lm_head.weight");
}

// ---- trainable tokens ----
TEST_F(Embeddings, TokensOfEitherEmbeddingMerge) {
  const std::vector<std::vector<std::pair<std::string, std::vector<std::int64_t>>>> choices = {
      {{"", {2, 54}}},
      {{"embed_tokens", {2, 54}}, {"lm_head", {1, 4}}},
      {{"embed_tokens", {2, 54}}, {"lm_head", {2, 54}}},
      {{"lm_head", {1, 54}}},
      {{"", {54, 2, 54}}}};
  for (const char* name : {"rt-llama", "rt-llama-tied"}) {
    for (const auto& tokens : choices) {
      const std::string what = name + std::string(" ") + tokens.front().first;
      const auto model = with(load_golden(name), on({"q_proj"}, tokens));
      const TemporaryFolder folder;
      model->save_pretrained(folder / "saved", {.sync = false});
      const auto again = PeftModel::from_pretrained(load_golden(name), folder / "saved");
      EXPECT_TRUE(again->logits(ids_).equal(model->logits(ids_))) << what;
      expect_merges(*model, what);
    }
  }
}

// Of two tied embeddings the file has the rows once, and they are counted once.
TEST_F(Embeddings, TiedTokensAreOneTensor) {
  const auto names = [](const PeftModel& model) {
    std::vector<std::string> found;
    for (const auto& [name, tensor] : model.state_dict()) {
      if (name.find("trainable_tokens") != std::string::npos) found.push_back(name);
    }
    return found;
  };
  const std::string input = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                    output = "base_model.model.lm_head.token_adapter.trainable_tokens_delta";
  const auto list = get_peft_model(tied_, on({"q_proj"}, {{"", {2, 54}}}));
  EXPECT_THAT(names(*list), ::testing::ElementsAre(input));
  EXPECT_EQ(list->trainable_parameters_line().substr(0, 21), "trainable params: 656");  // PEFT's number
  list->unload();
  const auto apart = get_peft_model(tied_, on({"q_proj"}, {{"embed_tokens", {2, 54}}, {"lm_head", {1, 4}}}));
  EXPECT_THAT(names(*apart), ::testing::UnorderedElementsAre(input, output));
  EXPECT_EQ(apart->trainable_parameters_line().substr(0, 21), "trainable params: 736");
}

TEST_F(Embeddings, RowsAreKeptInFp32) {
  const auto base = load_golden("rt-llama", at::kBFloat16);
  const auto model = with(base, on({"q_proj"}, {{"embed_tokens", {2, 54}}, {"lm_head", {1, 4}}}));
  const TemporaryFolder folder;
  model->save_pretrained(folder / "saved", {.sync = false});
  const auto again = PeftModel::from_pretrained(load_golden("rt-llama", at::kBFloat16), folder / "saved");
  const auto before = model->state_dict(), after = again->state_dict();
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(after[i].second.scalar_type(), at::kFloat) << after[i].first;
    EXPECT_TRUE(after[i].second.equal(before[i].second)) << after[i].first;
  }
  EXPECT_TRUE(again->logits(ids_).equal(model->logits(ids_)));
}

TEST_F(Embeddings, ATokenHasOneRow) {
  const auto model = with(own_, on({"q_proj"}, {{"", {2, 54}}}));
  model->add_adapter("b", on({"q_proj"}, {{"", {54, 7}}}));
  model->add_adapter("c", on({"q_proj"}, {{"", {5, 9}}}));
  move_rows(*model, "b", 1), move_rows(*model, "c", 1);
  const at::Tensor logits = model->logits(ids_);
  EXPECT_THAT(message([&] { model->set_adapter({"default", "b"}); }), HasSubstr("token 54 in default, b"));
  EXPECT_THAT(message([&] { model->merge_adapter({.adapter_names = {"default", "b"}}); }), HasSubstr("token 54"));
  EXPECT_TRUE(model->logits(ids_).equal(logits)) << "after refusals";
  model->merge_adapter();
  EXPECT_THAT(message([&] { model->merge_adapter({.adapter_names = {"b"}}); }), HasSubstr("token 54"));
  EXPECT_THAT(message([&] { model->delete_adapter("default"); }), HasSubstr("merged"));
  model->unmerge_adapter();
  model->set_adapter({"default", "c"});  // other tokens
  const at::Tensor both = model->logits(ids_);
  EXPECT_GT(max_difference(both, logits), 1e-3);
  model->merge_adapter();
  EXPECT_LE(max_difference(model->logits(ids_), both), 1e-5 * peak(both));
}

TEST_F(Embeddings, MergingByNameTakesTheRows) {
  const auto model = with(own_, on({"q_proj"}, {{"", {2, 54}}}));
  model->add_adapter("b", on({"q_proj"}, {{"embed_tokens", {54, 7}}, {"lm_head", {3}}}));
  move_rows(*model, "b", 1);
  const at::Tensor first = model->logits(ids_);
  model->set_adapter("b");
  const at::Tensor second = model->logits(ids_);
  model->set_adapter("default");
  model->merge_adapter({.adapter_names = {"b"}});
  EXPECT_LE(max_difference(model->logits(ids_), second), 1e-5 * peak(second));
  model->unmerge_adapter();
  EXPECT_TRUE(model->logits(ids_).equal(first));
}

TEST_F(Embeddings, TokensAndLoraOnOneEmbeddingAreRefused) {
  const auto refused = [&](const LoraConfig& config) {
    const std::string text = message([&] { get_peft_model(own_, config); });
    EXPECT_THAT(text, HasSubstr("on the same embedding"));
  };
  refused(on({"embed_tokens"}, {{"", {2, 54}}}));
  refused(on({"lm_head"}, {{"lm_head", {2, 54}}}));
  LoraConfig copy = on({"q_proj"}, {{"", {2, 54}}});
  copy.modules_to_save = {"embed_tokens"};
  refused(copy);
  const auto model = with(own_, on({"q_proj"}, {{"", {2, 54}}}));
  const at::Tensor logits = model->logits(ids_);
  EXPECT_THAT(message([&] { model->add_adapter("b", on({"embed_tokens"})); }), HasSubstr("on the same embedding"));
  EXPECT_THAT(model->adapter_names(), ::testing::ElementsAre("default"));
  EXPECT_TRUE(model->logits(ids_).equal(logits));
  EXPECT_THAT(message([&] { model->add_adapter("c", on({"q_proj"}, {{"", {}}})); }), HasSubstr("an empty list"));
}

TEST_F(Embeddings, TokensNeedAnEmbeddingOfThatName) {
  for (const char* name : {"no_such_embedding", "tokens"}) {
    const std::string text = message([&] { get_peft_model(own_, on({"v_proj"}, {{name, {2, 54}}})); });
    EXPECT_THAT(text, HasSubstr("trainable_token_indices")) << name;
  }
}

// LoRA of a tied output embedding is added to the new rows, as PEFT's wrappers lie.
TEST_F(Embeddings, LoraOfTheHeadIsAddedToTiedRows) {
  const at::Tensor ids = at::tensor(std::vector<std::int64_t>{5, 6, 7}, at::kLong).view({1, 3});
  const at::Tensor plain = tied_->logits(ids);
  const auto model = with(tied_, on({"lm_head"}, {{"", {2, 54}}}));
  const at::Tensor both = model->logits(ids);
  expect_merges(*model, "lm_head and tokens");
  const auto tokens = with(load_golden("rt-llama-tied"), on({"q_proj"}, {{"", {2, 54}}}));
  LoraConfig head = on({"lm_head"});
  const auto lora = get_peft_model(load_golden("rt-llama-tied"), head);
  // No token of the prompt is replaced, so hidden states are the base's: the two changes add up.
  const at::Tensor rows = [&] {
    LoraConfig only = on({"q_proj"}, {{"", {2, 54}}});
    only.init_lora_weights = "true";
    return with(load_golden("rt-llama-tied"), only)->logits(ids);
  }();
  const at::Tensor sum = rows + lora->logits(ids) - plain;
  EXPECT_LE(max_difference(both, sum), 1e-5 * peak(sum));
}

TEST_F(Embeddings, RowsThatAreNotInTheFileAreMissing) {
  const TemporaryFolder folder;
  get_peft_model(own_, on({"q_proj"}))->save_pretrained(folder / "saved", {.sync = false});
  Json config = read_json(folder.path() / "saved/adapter_config.json");
  config["trainable_token_indices"] = {2, 54};
  write_file(folder.path() / "saved/adapter_config.json", config.dump());
  EXPECT_THAT(message([&] { PeftModel::from_pretrained(own_, folder / "saved"); }), HasSubstr("no rows in the file"));
}

// ---- how an adapter started ----
class Starts : public ::testing::Test {
 protected:
  void SetUp() override {
    source_ = golden_root() / "parity/eva";
    if (!fs::exists(source_)) GTEST_SKIP() << "no golden data";
    fs::copy(source_ / "adapter", folder_.path() / "adapter");
    wanted_ = read_tensors(source_ / "expected/logits.safetensors").at("lora.logits");
    ids_ = ids_tensor(case_json("parity", "eva")["input_ids"]);
  }
  void change(const Json& values) const {
    Json config = read_json(source_ / "adapter/adapter_config.json");
    config["eva_config"] = nullptr;
    config.update(values);
    write_file(folder_.path() / "adapter/adapter_config.json", config.dump());
  }
  std::unique_ptr<PeftModel> model(ChangedBase base = ChangedBase::refuse) const {
    AdapterModelOptions options;
    options.changed_base = base;
    return PeftModel::from_pretrained(load_golden("rt-qwen3_moe"), (folder_.path() / "adapter").string(), options);
  }
  void expect_plain(ChangedBase base, const std::string& what) const {
    EXPECT_LE(max_difference(model(base)->logits(ids_), wanted_), allowed(3e-5)) << what;
  }
  TemporaryFolder folder_;
  fs::path source_;
  at::Tensor wanted_, ids_;
};

TEST_F(Starts, ThoseThatLeaveTheBaseLoadOnIt) {
  for (const Json& init : std::vector<Json>{true, false, "gaussian", "eva", "mica"}) {
    change({{"init_lora_weights", init}, {"eva_config", {{"rho", 2.0}}}});
    expect_plain(ChangedBase::refuse, init.dump());
    expect_plain(ChangedBase::is_residual, init.dump());
  }
}

TEST_F(Starts, ThoseThatChangeTheBaseLoadOnTheChangedOne) {
  const std::vector<Json> all = {{{"init_lora_weights", "pissa"}},
                                 {{"init_lora_weights", "pissa_niter_4"}},
                                 {{"init_lora_weights", "olora"}},
                                 {{"init_lora_weights", "corda"}, {"corda_config", {{"corda_method", "kpm"}}}},
                                 {{"init_lora_weights", "loftq"}, {"loftq_config", {{"loftq_bits", 4}}}},
                                 {{"init_lora_weights", "lora_ga"}, {"lora_ga_config", {{"direction", "ArB2r"}}}}};
  for (const Json& values : all) {
    change(values);
    EXPECT_THAT(message([&] { model(); }), HasSubstr("--base-is-residual")) << values;
    expect_plain(ChangedBase::is_residual, values.dump());
  }
}

// CorDA and LoRA-GA take their start out of the base, as PiSSA does: saved with it, they are plain LoRA.
TEST_F(Starts, CordaAndLoraGaBecomePlainWhenSavedWithTheirStart) {
  for (const char* init : {"corda", "lora_ga"}) {
    change({{"init_lora_weights", init}});
    const auto trained = model(ChangedBase::is_residual);
    trained->save_pretrained(folder_ / "plain",
                             {.path_initial_model_for_weight_conversion = folder_ / "adapter", .sync = false});
    const Json config = read_json(folder_.path() / "plain/adapter_config.json");
    EXPECT_EQ(config["r"], 6) << init;
    EXPECT_EQ(config["init_lora_weights"], true) << init;
    const auto plain = PeftModel::from_pretrained(load_golden("rt-qwen3_moe"), folder_ / "plain");
    EXPECT_LE(peak(plain->get_delta_weight("model.layers.0.self_attn.q_proj.weight")), 1e-6) << init;  // not trained
  }
  change({{"init_lora_weights", "loftq"}});
  EXPECT_THAT(message([&] {
                model(ChangedBase::is_residual)
                    ->save_pretrained(folder_ / "no",
                                      {.path_initial_model_for_weight_conversion = folder_ / "adapter", .sync = false});
              }),
              HasSubstr("loftq"));
}

// ---- heads ----
TEST_F(Starts, AClassificationAdapterIsRefusedByItsHead) {
  const std::vector<std::pair<std::string, std::string>> tasks = {
      {"SEQ_CLS", "score"}, {"TOKEN_CLS", "classifier"}, {"QUESTION_ANS", "qa_outputs"}};
  for (const auto& [task, head] : tasks) {
    change({{"init_lora_weights", true}, {"task_type", task}});
    const std::string text = message([&] { model(); });
    EXPECT_THAT(text, ::testing::AllOf(HasSubstr(task), HasSubstr(head))) << text;
    LoraConfig config;
    config.target_modules = std::vector<std::string>{"q_proj"};
    config.task_type = task;
    EXPECT_THAT(message([&] { get_peft_model(load_golden("rt-qwen3_moe"), config); }), HasSubstr(head));
  }
}

}  // namespace
}  // namespace peft::nn::testing
