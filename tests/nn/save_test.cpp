// What lies beside the weights of a saved adapter: the model card, and files of others.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nn/small_models.h"
#include "peft/error.h"
#include "peft/nn/peft_model.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;
using peft::testing::read_file;
using peft::testing::TemporaryFolder;
using peft::testing::write_file;

class Saving : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(base_folder_);
    write_file(fs::path(base_folder_) / "config.json", qwen3_moe(Json::object()).dump());
    base_ = init_model(base_folder_, {.dtype = at::kFloat});
  }
  static LoraConfig config() {
    LoraConfig c;
    c.r = 2;
    c.target_modules = std::vector<std::string>{"q_proj"};
    c.task_type = "CAUSAL_LM";
    return c;
  }
  std::unique_ptr<PeftModel> model(const LoraConfig& config) const { return get_peft_model(base_, config); }
  std::string out(const std::string& name = "") const { return out_ / ("out/" + name); }

  TemporaryFolder folder_, out_;
  std::string base_folder_ = folder_ / "a \"base\": 30B";  // YAML would read it as something else
  std::shared_ptr<CausalLM> base_;
};

// The front matter of PEFT 0.21.2, field by field; a quoted string is the same YAML.
TEST_F(Saving, TheCardSaysWhoseAdapterItIs) {
  model(config())->save_pretrained(out(), {.sync = false});
  const std::string name = folder_ / R"(a \"base\": 30B)";
  EXPECT_EQ(read_file(out("README.md")), fmt::format(R"(---
base_model: "{0}"
library_name: peft
pipeline_tag: text-generation
tags:
- "base_model:adapter:{0}"
- lora
- transformers
---

A LoRA adapter, to be loaded on top of its base model.

### Framework versions

- PEFT 0.21.2
)",
                                                     name));
}

TEST_F(Saving, TheCardOfAnotherTaskHasNoPipeline) {
  LoraConfig other = config();
  other.task_type.reset();
  model(other)->save_pretrained(out(), {.sync = false});
  const std::string card = read_file(out("README.md"));
  EXPECT_EQ(card.find("pipeline_tag"), std::string::npos) << card;
  EXPECT_THAT(card, ::testing::HasSubstr("30B\"\nlibrary_name: peft\ntags:\n"));
}

TEST_F(Saving, SeveralAdaptersHaveOneCard) {
  const auto lora = model(config());
  lora->add_adapter("second", config());
  lora->save_pretrained(out(), {.selected_adapters = {"second"}, .sync = false});
  EXPECT_TRUE(fs::exists(out("README.md")));
  EXPECT_FALSE(fs::exists(out("second/README.md")));
}

TEST_F(Saving, WhatElseLiesInTheFolderStays) {
  const auto lora = model(config());
  lora->add_adapter("second", config(), {.seed = 4});
  lora->save_pretrained(out(), {.sync = false});
  const std::string old_weights = read_file(out("adapter_model.safetensors"));
  write_file(out("README.md"), "# mine\r\n");
  write_file(out("tokenizer.json"), "{}");
  fs::create_directories(out("logs/first"));
  write_file(out("logs/first/steps"), std::string("\0\n", 2));
  fs::create_symlink("tokenizer.json", out("link"));
  lora->delete_adapter("default");
  lora->set_adapter("second");
  const std::string second = read_file(out("second/adapter_model.safetensors"));
  {
    const at::NoGradGuard no_grad;
    for (const AdapterTensor& tensor : lora->adapter_tensors("second")) at::Tensor(tensor.tensor).add_(1);
  }
  lora->save_pretrained(out(), {.sync = false});
  EXPECT_EQ(read_file(out("README.md")), "# mine\r\n");
  EXPECT_EQ(read_file(out("tokenizer.json")), "{}");
  EXPECT_EQ(read_file(out("link")), "{}");
  EXPECT_EQ(read_file(out("logs/first/steps")), std::string("\0\n", 2));
  EXPECT_EQ(read_file(out("adapter_model.safetensors")), old_weights);  // not saved now, and not lost
  EXPECT_NE(read_file(out("second/adapter_model.safetensors")), second);
}

TEST_F(Saving, WhatCannotBeKeptIsAnErrorAndNothingChanges) {
  const auto lora = model(config());
  fs::create_directories(out());
  fs::create_directory_symlink(folder_.path(), out("elsewhere"));
  try {
    lora->save_pretrained(out(), {.sync = false});
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::OUT_EXISTS);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("elsewhere"));
  }
  EXPECT_TRUE(fs::is_symlink(out("elsewhere")));
  EXPECT_FALSE(fs::exists(out("adapter_model.safetensors")));
}

}  // namespace
}  // namespace peft::nn::testing
