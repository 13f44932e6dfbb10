#include "adapter/mlx_config.h"

#include "support/test_files.h"

namespace peft::adapter {
namespace {

using safetensors::error_of;
using safetensors::expect_error;
using safetensors::TestFolder;

Adapter read(const std::string& text) {
  const TestFolder folder;
  const std::string path = folder / "adapter_config.json";
  std::ofstream(path) << text;
  Adapter adapter;
  read_mlx_config(adapter, path);
  return adapter;
}

TEST(MlxConfig, HasOneRankAndOneScale) {
  const Adapter adapter = read(R"({"model": "org/base", "fine_tune_type": "lora", "num_layers": 4, "lora_parameters":
               {"rank": 3, "scale": 1.6666666666666667, "dropout": 0.1, "keys": ["self_attn.q_proj"]}})");
  EXPECT_EQ(adapter.form, AdapterForm::mlx);
  EXPECT_EQ(adapter.config.r, 3);
  EXPECT_EQ(adapter.scale, 1.6666666666666667);
  EXPECT_EQ(adapter.config.lora_alpha.value, 3 * 1.6666666666666667);
  EXPECT_EQ(adapter.config.base_model_name_or_path, "org/base");
}

// Early 2024: no fine_tune_type, lora_layers, and a scale that is multiplied by alpha / rank.
TEST(MlxConfig, OlderFormsAreReadWhereTheyTell) {
  EXPECT_EQ(read(R"({"lora_layers": 16, "lora_parameters": {"rank": 8, "scale": 10.0, "dropout": 0.0}})").scale, 10.0);
  EXPECT_EQ(
      read(R"({"lora_layers": 16, "lora_parameters": {"rank": 8, "alpha": 16, "scale": 10.0, "dropout": 0.0}})").scale,
      20.0);
}

TEST(MlxConfig, EverythingElseIsRefusedByName) {
  struct Row {
    const char* text;
    ErrorCode code;
    std::vector<std::string> words;
  };
  using enum ErrorCode;
  for (const Row& row : std::vector<Row>{
           {R"([])", CF_FORM, {"object"}},
           {R"({"fine_tune_type": "lora"})", CF_FORM, {"lora_parameters"}},
           {R"({"fine_tune_type": "dora", "lora_parameters": {"rank": 2, "scale": 1}})", CF_UNSUP, {"dora"}},
           {R"({"fine_tune_type": "full"})", CF_UNSUP, {"full"}},
           {R"({"fine_tune_type": 3})", CF_UNSUP, {"3"}},
           {R"({"lora_parameters": {"rank": 2}})", CF_VALUE, {"scale"}},
           {R"({"lora_parameters": {"scale": 2}})", CF_VALUE, {"rank"}},
           {R"({"lora_parameters": {"rank": "2", "scale": 1}})", CF_VALUE, {"rank"}},
           {R"({"lora_parameters": {"rank": 0, "scale": 1}})", CF_RANK, {"0"}},
           {R"({"lora_parameters": {"rank": 2.5, "scale": 1}})", CF_RANK, {"2.5"}},
           {R"({"lora_parameters": {"rank": 1e300, "scale": 1}})", CF_RANK, {}},
       }) {
    SCOPED_TRACE(row.text);
    expect_error(error_of([&] { read(row.text); }), row.code, row.words);
  }
}

TEST(MlxConfig, IsWrittenAsMlxWritesIt) {
  AdapterConfig source;
  source.base_model_name_or_path = "org/base";
  EXPECT_EQ(write_mlx_config(source, 3, 2.5, 2, {"mlp.gate", "self_attn.q_proj"}), R"({
    "fine_tune_type": "lora",
    "lora_parameters": {
        "dropout": 0.0,
        "keys": [
            "mlp.gate",
            "self_attn.q_proj"
        ],
        "rank": 3,
        "scale": 2.5
    },
    "model": "org/base",
    "num_layers": 2
})");
}

}  // namespace
}  // namespace peft::adapter
