// get_layer_status and get_model_status after every step of the stories in status.json, as the real PEFT tells them.
// They show gradients too: who is trained after which call.
#include <gtest/gtest.h>

#include "nn/small_models.h"
#include "peft/nn/peft_model.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"
#include "test_paths.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;

Json stories() {
  const std::string path = std::string(PEFT_SOURCE_DIR) + "/tests/nn/status.json";
  return Json::parse(safetensors::read_text_file(path))["stories"];
}

template <class T>
Json to_json(const Agreed<T>& value) {
  return value.irregular ? Json("irregular") : Json(value.value);
}
Json to_json(const std::map<std::string, Agreed<bool>>& values) {
  Json json = Json::object();
  for (const auto& [name, value] : values) json[name] = to_json(value);
  return json;
}

Json to_json(const LayerStatus& layer) {
  return {{"name", layer.name},
          {"module_type", layer.module_type},
          {"enabled", layer.enabled},
          {"active_adapters", layer.active_adapters},
          {"merged_adapters", layer.merged_adapters},
          {"requires_grad", to_json(layer.requires_grad)},
          {"available_adapters", layer.available_adapters},
          {"devices", layer.devices}};
}
Json to_json(const ModelStatus& model) {
  return {{"base_model_type", model.base_model_type},
          {"adapter_model_type", model.adapter_model_type},
          {"peft_types", model.peft_types},
          {"trainable_params", model.trainable_params},
          {"total_params", model.total_params},
          {"num_adapter_layers", model.num_adapter_layers},
          {"enabled", model.enabled},
          {"active_adapters", to_json(model.active_adapters)},
          {"merged_adapters", to_json(model.merged_adapters)},
          {"requires_grad", to_json(model.requires_grad)},
          {"available_adapters", model.available_adapters},
          {"devices", model.devices}};
}

LoraConfig config_of(Json fields) {
  fields.update({{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}, {"task_type", "CAUSAL_LM"}});
  return AdapterConfig::parse(fields.dump(), "LoraConfig");
}

class Story {
 public:
  explicit Story(const Json& config) : base_(made(folder_, config, {})) {}

  void tell(const Json& step) {
    const auto name = step[0].get<std::string>();
    if (name == "new") {
      model_ = get_peft_model(base_, config_of(step[1]));
    } else if (name == "add_adapter") {
      model_->add_adapter(step[1], config_of(step[2]));
    } else if (name == "save") {
      model_->save_pretrained(saved(), {.sync = false});
    } else if (name == "from_pretrained") {
      model_.reset();
      model_ = PeftModel::from_pretrained(base_, saved(), {.is_trainable = step[1]});
    } else if (name == "load_adapter") {
      model_->load_adapter(saved(), step[1], {.is_trainable = step[2]});
    } else if (name == "set_adapter") {
      model_->set_adapter(step[1].get<std::string>(), step[2].get<bool>());
    } else if (name == "set_requires_grad") {
      model_->set_requires_grad(step[1].get<std::vector<std::string>>(), step[2].get<bool>());
    } else if (name == "delete_adapter") {
      model_->delete_adapter(step[1]);
    } else if (name == "merge_adapter") {
      model_->merge_adapter();
    } else if (name == "unmerge_adapter") {
      model_->unmerge_adapter();
    } else {
      FAIL() << name;
    }
  }

  const PeftModel& model() const { return *model_; }

 private:
  std::string saved() const { return folder_ / "saved"; }
  TemporaryFolder folder_;
  std::shared_ptr<CausalLM> base_;
  std::unique_ptr<PeftModel> model_;
};

TEST(Status, IsThatOfPeftAfterEveryStep) {
  const Json all = stories();
  EXPECT_GE(all.size(), 9);
  for (const auto& [name, story] : all.items()) {
    Story here(story["config"]);
    Json layers;
    for (const Json& step : story["steps"]) {
      SCOPED_TRACE(name + ": " + step["step"].dump());
      here.tell(step["step"]);
      layers = step.value("layers", layers);
      EXPECT_EQ(to_json(here.model().get_model_status()), step["model"]);
      const auto got = here.model().get_layer_status();
      ASSERT_EQ(got.size(), layers.size());
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(to_json(got[i]), layers[i]);
    }
  }
}

}  // namespace
}  // namespace peft::nn::testing
