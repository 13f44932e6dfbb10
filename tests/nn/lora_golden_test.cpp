// The golden data through PeftModel: logits of every adapter on the families that run, counts, merging, gradients.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "nn/golden_nn.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"
#include "support/golden.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;
using peft::testing::TemporaryFolder;

const std::set<std::string> kRunnable = {"mixtral", "qwen2_moe", "qwen3_moe", "qwen3_5_moe", "qwen3_5_moe_text",
                                         "gpt_oss", "llama",     "qwen2",     "qwen3"};

std::string type_of(const std::string& model) {
  const fs::path config = golden_root() / "models" / model / "config.json";
  if (!fs::exists(config)) return "";
  return Json::parse(std::ifstream(config)).value("model_type", "");
}

// Of families that run here. The repository's own selection has no weights, and no logits, for some of them.
std::vector<std::string> runnable(const std::string& group) {
  std::vector<std::string> names;
  for (const std::string& name : cases(group)) {
    const std::string model = case_json(group, name).value("model", "");
    const bool has_weights = fs::exists(golden_root() / "models" / model / "model.safetensors");
    const bool has_logits =
        group != "native" || fs::exists(golden_root() / group / name / "expected/logits.safetensors");
    if (kRunnable.contains(type_of(model)) && has_weights && has_logits) names.push_back(name);
  }
  return names;
}

at::ScalarType base_dtype(const Json& json) {
  const std::string name = json.value("base_dtype", "float32");
  return name == "bfloat16" ? at::kBFloat16 : name == "float16" ? at::kHalf : at::kFloat;
}

fs::path adapter_of(const std::string& group, const std::string& name) {
  return golden_root() / group / name / "adapter";
}

// Saved by us and loaded again: the same logits, bit for bit.
void expect_round_trip(const PeftModel& model, const std::shared_ptr<CausalLM>& fresh, const at::Tensor& ids,
                       const at::Tensor& mask, const at::Tensor& logits) {
  const TemporaryFolder folder;
  model.save_pretrained(folder / "saved", {.sync = false});
  const auto again = PeftModel::from_pretrained(fresh, folder / "saved");
  EXPECT_TRUE(again->logits(ids, mask).equal(logits)) << "after saving and loading";
  EXPECT_EQ(again->peft_config().dump(), model.peft_config().dump());
}

std::string name_of(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

// ---- runtime ----
class LoraRuntime : public ::testing::TestWithParam<std::string> {
 protected:
  LoraRuntime()
      : json_(case_json("runtime", GetParam())),
        ids_(ids_tensor(json_["input_ids"])),
        mask_(ids_tensor(json_["attention_mask"])),
        adapter_(adapter_of("runtime", GetParam()).string()) {}
  Tensors expected(const std::string& key) const {
    return read_tensors(golden_root() / "runtime" / GetParam() / json_["expect"][key].get<std::string>());
  }
  double tolerance(const char* dtype) const { return allowed(json_["expect"]["tolerance"][dtype]["lora"]["abs"]); }
  at::Tensor real(const at::Tensor& logits) const { return masked("logits", logits, mask_); }

  Json json_;
  at::Tensor ids_, mask_;
  std::string adapter_;
};

TEST_P(LoraRuntime, LogitsOfBothForms) {
  const at::Tensor wanted = real(expected("lora").at("logits")), unmasked = expected("no_mask").at("lora.logits");
  for (const char* key : {"model", "model_v4"}) {
    if (json_[key].is_null() || !has_model(json_[key])) continue;
    const auto model = PeftModel::from_pretrained(load_golden(json_[key]), adapter_);
    EXPECT_LE(max_difference(real(model->logits(ids_, mask_)), wanted), tolerance("fp32")) << key;
    EXPECT_LE(max_difference(model->logits(ids_), unmasked), tolerance("fp32")) << key;
  }
}

TEST_P(LoraRuntime, EveryStep) {
  const auto base = load_golden(json_["model"]);
  const auto model = PeftModel::from_pretrained(base, adapter_);
  Tensors recorded;
  const Recorder recorder = [&recorded](const std::string& name, const at::Tensor& value) {
    recorded[name] = value.clone();
  };
  ForwardContext context;
  context.recorder = &recorder;
  const at::NoGradGuard no_gradients;
  base->forward({.ids = ids_, .mask = mask_, .positions = {}}, context);
  const double share = GetParam().starts_with("qwen3_5") ? 8e-5 : 2e-5;
  for (const auto& [name, wanted] : expected("lora")) {
    ASSERT_TRUE(recorded.contains(name)) << name;
    const at::Tensor got = masked(name, recorded[name], mask_), want = masked(name, wanted, mask_);
    if (want.scalar_type() == at::kLong)
      EXPECT_TRUE(got.equal(want)) << name;
    else
      EXPECT_LE(max_difference(got, want), share * std::max(peak(want), 1e-30)) << name;
  }
}

TEST_P(LoraRuntime, BFloat16) {
  const auto model = PeftModel::from_pretrained(load_golden(json_["model"], at::kBFloat16), adapter_);
  EXPECT_LE(max_difference(real(model->logits(ids_, mask_)), real(expected("bf16").at("lora.logits"))),
            tolerance("bf16"));
}

TEST_P(LoraRuntime, SavesLoadsDisablesMergesAndTakesOut) {
  const auto base = load_golden(json_["model"]);
  const at::Tensor plain = base->logits(ids_, mask_);
  const auto model = PeftModel::from_pretrained(base, adapter_);
  const at::Tensor logits = model->logits(ids_, mask_);
  EXPECT_GT(max_difference(real(logits), real(plain)), 0.01);
  {
    const auto disabled = model->disable_adapter();
    EXPECT_TRUE(model->logits(ids_, mask_).equal(plain));
  }
  EXPECT_TRUE(model->logits(ids_, mask_).equal(logits));
  expect_round_trip(*model, load_golden(json_["model"]), ids_, mask_, logits);
  const bool no_bias_to_merge = model->peft_config().lora_bias && GetParam() != "qwen2";
  if (no_bias_to_merge) return;
  model->merge_adapter();
  EXPECT_LE(max_difference(real(model->logits(ids_, mask_)), real(logits)), 4 * tolerance("fp32"));
  model->unmerge_adapter();
  EXPECT_TRUE(model->logits(ids_, mask_).equal(logits));
  const auto merged = model->merge_and_unload();
  EXPECT_LE(max_difference(real(merged->logits(ids_, mask_)), real(logits)), 4 * tolerance("fp32"));
}

// Rows of one batch with another adapter each, experts too.
TEST_P(LoraRuntime, MixedBatch) {
  const auto model = PeftModel::from_pretrained(load_golden(json_["model"]), adapter_);
  const at::Tensor lora = model->logits(ids_), plain = model->base()->logits(ids_);  // the hooks are in: still LoRA
  EXPECT_TRUE(lora.equal(plain));
  at::Tensor base;
  {
    const auto disabled = model->disable_adapter();
    base = model->logits(ids_);
  }
  const at::Tensor mixed = model->logits(ids_, {}, {.adapter_names = {"__base__", "default"}});
  EXPECT_LE(max_difference(mixed.select(0, 0), base.select(0, 0)), tolerance("fp32"));
  EXPECT_LE(max_difference(mixed.select(0, 1), lora.select(0, 1)), tolerance("fp32"));
  EXPECT_THROW(model->logits(ids_, {}, {.adapter_names = {"default"}}), Error);
  EXPECT_THROW(model->logits(ids_, {}, {.adapter_names = {"default", "nobody"}}), Error);
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraRuntime, ::testing::ValuesIn(cases("runtime")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraRuntime);

// ---- native ----
class LoraNative : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraNative, LogitsAndCounts) {
  const Json json = case_json("native", GetParam());
  const fs::path folder = golden_root() / "native" / GetParam();
  const auto base = load_golden(json["model"], base_dtype(json));
  Tensors expected = read_tensors(folder / "expected/logits.safetensors");
  for (const auto& entry : fs::directory_iterator(folder / "expected")) {
    if (entry.path().filename() == "right_logits.safetensors") {
      for (const auto& [name, tensor] : read_tensors(entry.path())) expected["right." + name] = tensor;
    }
  }
  AdapterModelOptions options;
  options.is_trainable = true;
  const auto model = PeftModel::from_pretrained(base, adapter_of("native", GetParam()).string(), options);
  if (json["expect"].contains("trainable_line")) {
    const std::string line = json["expect"]["trainable_line"];
    if (line.starts_with("trainable params: 0 ")) {  // recorded with inference_mode
      const auto frozen =
          PeftModel::from_pretrained(load_golden(json["model"]), adapter_of("native", GetParam()).string());
      EXPECT_EQ(frozen->trainable_parameters_line(), line);
    } else {
      EXPECT_EQ(model->trainable_parameters_line(), line);
    }
  }
  const double tolerance = base_dtype(json) == at::kFloat ? 1e-4 : 0.15;
  const at::Tensor ids = expected.at("input_ids"), logits = model->logits(ids).to(at::kFloat);
  const bool incomplete = GetParam() == "qwen2-bias_lora_only-p0191";  // trained biases are not in the file
  const bool wrong_logits = fs::exists(folder / "expected/right_delta.safetensors");  // one expert: PEFT is wrong
  for (const char* key : {"right.right_logits", "right.lora", "reloaded", "lora"}) {
    if (!expected.contains(key) || incomplete || wrong_logits) continue;
    EXPECT_LE(max_difference(logits, expected.at(key)), tolerance) << key;
    break;
  }
  if (expected.contains("lora_other")) {
    model->load_adapter((folder / "adapter/other").string(), "other");
    model->set_adapter("other");
    EXPECT_LE(max_difference(model->logits(ids).to(at::kFloat), expected.at("lora_other")), tolerance);
    model->set_adapter({"default", "other"});
    EXPECT_LE(max_difference(model->logits(ids).to(at::kFloat), expected.at("lora_default+other")), tolerance);
    model->delete_adapter("other");
    model->set_adapter("default");
  }
  const char* deltas = wrong_logits ? "expected/right_delta.safetensors" : "expected/delta.safetensors";
  for (const auto& [name, wanted] : read_tensors(folder / deltas)) {
    if (name.ends_with("_other") || expected.contains("reloaded")) continue;
    const at::Tensor delta = model->get_delta_weight(name);
    EXPECT_LE(max_difference(delta.reshape(wanted.sizes()), wanted),
              tolerance > 0.1 ? 6e-3 : 2e-6 * std::max(1.0, peak(wanted)))
        << name;
  }
  if (!incomplete) expect_round_trip(*model, load_golden(json["model"], base_dtype(json)), ids, {}, model->logits(ids));
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraNative, ::testing::ValuesIn(runnable("native")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraNative);

// ---- convert: adapters of transformers 4 ----
class LoraConvert : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraConvert, LogitsOfTheProducer) {
  const Json json = case_json("convert", GetParam());
  const fs::path folder = golden_root() / "convert" / GetParam();
  const auto base = load_golden(json["model"], base_dtype(json));
  AdapterModelOptions options;
  options.is_trainable = true;
  std::unique_ptr<PeftModel> model;
  try {
    model = PeftModel::from_pretrained(base, (folder / "adapter").string(), options);
  } catch (const Error& error) {
    // Files that are wrong on purpose: half of a pair, experts that are not there, keys that belong to nothing.
    static const std::set<std::string> kBad = {"mixtral-extra-expert", "mixtral-one-tensor-missing",
                                               "mixtral-extra-keys", "mixtral-base-weight-inside"};
    EXPECT_TRUE(kBad.contains(GetParam())) << error.what();
    return;
  }
  const at::Tensor ids = ids_tensor(json["input_ids"]);
  const at::Tensor logits = model->logits(ids).to(at::kFloat);
  for (const char* file : {"logits_v4.safetensors", "logits_producer.safetensors"}) {
    if (!fs::exists(folder / "expected" / file)) continue;
    const at::Tensor wanted = read_tensors(folder / "expected" / file).at("lora").to(at::kFloat);
    EXPECT_LE(max_difference(logits, wanted), std::max(1e-5, 1e-5 * peak(wanted))) << file;
  }
  const fs::path messages = folder / "expected/messages_0.21.2.json";
  // To layers that had no LoRA, PEFT gives an empty one.
  static const std::set<std::string> kMore = {"mixtral-exclude-layer", "mixtral-layers-pattern"};
  if (fs::exists(messages) && !json.contains("peft_is_wrong") && !kMore.contains(GetParam())) {
    const Json said = Json::parse(std::ifstream(messages));
    if (said.contains("line_trainable")) {
      EXPECT_EQ(model->trainable_parameters_line(), said["line_trainable"].get<std::string>());
    }
  }
  expect_round_trip(*model, load_golden(json["model"], base_dtype(json)), ids, {}, model->logits(ids));
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraConvert, ::testing::ValuesIn(runnable("convert")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraConvert);

// ---- shapes: full size, without weights ----
class LoraShapes : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraShapes, NamesShapesAndTheLine) {
  const Json json = case_json("shapes", GetParam());
  const fs::path folder = golden_root() / "shapes" / GetParam();
  const auto base = init_model((folder / "base").string(), {.device = "meta"});
  Json given = Json::parse(std::ifstream(folder / "expected/config_after.json"));
  given["peft_type"] = "LORA";
  LoraConfig config = AdapterConfig::parse(given.dump(), "config_after.json");
  const bool frozen = json["trainable_line"].get<std::string>().starts_with("trainable params: 0 ");
  if (frozen) config.set("inference_mode", "true");
  const auto model = get_peft_model(base, config);
  const Json shapes = Json::parse(std::ifstream(folder / "expected/shapes.json"));
  const auto state = model->state_dict();
  EXPECT_EQ(state.size(), shapes.size());
  for (const auto& [name, tensor] : state) {
    ASSERT_TRUE(shapes.contains(name)) << name;
    EXPECT_EQ(tensor.sizes().vec(), shapes[name].get<std::vector<std::int64_t>>()) << name;
  }
  const auto [trainable, all] = model->get_nb_trainable_parameters();
  const std::string line = json["trainable_line"];
  EXPECT_NE(line.find("all params: "), std::string::npos);
  EXPECT_EQ(model->trainable_parameters_line(), line) << trainable << " of " << all;
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraShapes, ::testing::ValuesIn(cases("shapes")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraShapes);

// ---- merge ----
std::vector<std::string> merges(bool weighted) {
  std::vector<std::string> names;
  for (const std::string& name : runnable("merge")) {
    if ((name.find("-weighted-") != std::string::npos) == weighted) names.push_back(name);
  }
  return names;
}

class LoraMerge : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraMerge, WeightsAsPeftRoundsThem) {
  const Json json = case_json("merge", GetParam());
  const fs::path folder = golden_root() / "merge" / GetParam();
  for (const bool safe : {false, true}) {
    const auto model =
        PeftModel::from_pretrained(load_golden(json["model"], base_dtype(json)), (folder / "adapter").string());
    std::vector<std::string> names = {"default"};
    if (fs::exists(folder / "adapter/other")) {
      model->load_adapter((folder / "adapter/other").string(), "other");
      names.emplace_back("other");
    }
    model->set_adapter(names);
    model->merge_adapter({.safe_merge = safe});
    Tensors wanted = read_tensors(folder / "expected/merged.safetensors");
    if (safe && fs::exists(folder / "expected/merged_safe.safetensors")) {
      for (const auto& [name, tensor] : read_tensors(folder / "expected/merged_safe.safetensors"))
        wanted[name] = tensor;
    }
    const auto parameters = model->base()->parameters();
    const std::map<std::string, at::Tensor> got(parameters.begin(), parameters.end());
    const bool second_dora = GetParam().find("two-dora") != std::string::npos;  // PEFT takes the first out inexactly
    for (const auto& [name, tensor] : wanted) {
      ASSERT_TRUE(got.contains(name)) << name;
      const at::Tensor mine = got.at(name).reshape(tensor.sizes());
      const auto different = mine.ne(tensor).sum().item<std::int64_t>();
      if (base_dtype(json) == at::kFloat) {
        EXPECT_LE(max_difference(mine, tensor), (second_dora ? 1e-5 : 2e-6) * std::max(1.0, peak(tensor))) << name;
      } else {
        // The same roundings; the sums over the rank may differ in the last bit of fp32 and so in a few elements.
        EXPECT_LE(different, tensor.numel() / 200 + 1) << name << (safe ? " safe" : "");
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraMerge, ::testing::ValuesIn(merges(false)), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraMerge);

class LoraWeighted : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraWeighted, RightDelta) {
  const Json json = case_json("merge", GetParam());
  const fs::path folder = golden_root() / "merge" / GetParam();
  const auto model = PeftModel::from_pretrained(load_golden(json["model"]), (folder / "adapter").string());
  model->load_adapter((folder / "adapter/other").string(), "other");
  const Json combined = json["expect"]["combined"];
  WeightedOptions options;
  options.combination_type = combined["type"];
  model->add_weighted_adapter({"default", "other"}, combined["weights"].get<std::vector<double>>(), "both", options);
  for (const auto& [name, wanted] : read_tensors(folder / "expected/right_delta.safetensors")) {
    EXPECT_LE(max_difference(model->get_delta_weight(name, "both"), wanted), 2e-6 * std::max(1.0, peak(wanted)))
        << name;
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraWeighted, ::testing::ValuesIn(merges(true)), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraWeighted);

// ---- train: the first step's gradients ----
class LoraGradients : public ::testing::TestWithParam<std::string> {};

TEST_P(LoraGradients, OfTheFirstBatch) {
  const Json json = case_json("train", GetParam());
  const fs::path folder = golden_root() / "train" / GetParam();
  if (GetParam().find("aux") != std::string::npos || GetParam().find("accumulate") != std::string::npos) {
    GTEST_SKIP() << "a loss of the trainer's own";
  }
  AdapterModelOptions options;
  options.is_trainable = true;
  const auto model = PeftModel::from_pretrained(load_golden(json["model"]), (folder / "adapter").string(), options);
  const Json& batch = json["batches"][0];
  const at::Tensor ids = ids_tensor(batch["input_ids"]), labels = ids_tensor(batch["labels"]);
  at::Tensor mask;
  if (batch.contains("attention_mask")) mask = ids_tensor(batch["attention_mask"]);
  const at::Tensor logits = model->forward({.ids = ids, .mask = mask, .positions = {}}, {.training = true}).logits;
  const std::int64_t n = ids.size(1);
  const at::Tensor next = labels.narrow(1, 1, n - 1).reshape({-1}).to(logits.device());
  const at::Tensor loss = at::cross_entropy_loss(logits.narrow(1, 0, n - 1).reshape({-1, logits.size(2)}), next);
  EXPECT_NEAR(loss.item<double>(), json["expect"]["steps"][0]["loss"].get<double>(), 1e-4);
  loss.backward();
  std::map<std::string, at::Tensor> got;
  for (const AdapterTensor& t : model->adapter_tensors()) {
    if (t.tensor.grad().defined()) got[t.key] = t.in_file_form(t.tensor.grad());
  }
  // 4 times what the real program's own variants (attention, experts) differ by, as the case states it.
  const double relative = json["expect"]["tolerance"]["grad_rel_to_tensor_peak"].get<double>();
  for (const auto& [name, wanted] : read_tensors(folder / "expected/grads_step0.safetensors")) {
    if (!got.contains(name)) {
      EXPECT_EQ(peak(wanted), 0) << name;
      continue;
    }
    const double allowed = std::max(1e-9, relative * peak(wanted));
    EXPECT_LE(max_difference(got.at(name).reshape(wanted.sizes()), wanted), allowed) << name;
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, LoraGradients, ::testing::ValuesIn(cases("train")), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoraGradients);

}  // namespace
}  // namespace peft::nn::testing
