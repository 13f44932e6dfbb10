// One model in several forms of checkpoint: one file or many, quantised or not. It must be the same model, or one clear
// error.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "nn/golden_nn.h"
#include "peft/error.h"
#include "peft/nn/model.h"
#include "support/model_writer.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;
using peft::testing::BlockFp8;
using peft::testing::Found;
using peft::testing::Mxfp4;
using peft::testing::Stored;
using peft::testing::TemporaryFolder;
using ::testing::HasSubstr;

std::shared_ptr<CausalLM> loaded(const fs::path& folder) { return load_model(folder.string(), {.dtype = at::kFloat}); }

void expect_same(const CausalLM& got, const CausalLM& want) {
  const auto a = got.parameters(), b = want.parameters();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].second.equal(b[i].second)) << b[i].first;
  const at::Tensor ids = at::tensor({1, 5, 2, 9, 11, 3, 4, 4, 7}, at::kLong).view({1, 9});
  EXPECT_TRUE(got.logits(ids).equal(want.logits(ids)));
}

void expect_error(const fs::path& folder, ErrorCode code, const std::string& text) {
  try {
    loaded(folder);
    ADD_FAILURE() << "no error; expected " << text;
  } catch (const Error& error) {
    EXPECT_EQ(info(error.code()).name, info(code).name) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

// ---------------------------------------------------------------------------------------------------------- several
// files

class Shards : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_model(GetParam())) GTEST_SKIP() << "not in this selection of the golden data";
    source_ = golden_root() / "models" / GetParam();
    const Json config = Json::parse(peft::testing::read_file(source_ / "config.json"));
    std::size_t next = 0;  // by turns, so that what becomes one parameter comes from all files
    for (const auto& [name, found] : peft::testing::tensors_in(source_)) {
      shards_[next++ % 3].push_back(peft::testing::stored_bytes(name, found.dtype, found.shape, found.bytes));
    }
    peft::testing::write_base(folder_.path() / "base", config, shards_);
  }
  fs::path base() const { return folder_.path() / "base"; }
  void change_index(const std::function<void(Json&)>& change) const {
    Json index = peft::testing::read_json(base() / "model.safetensors.index.json");
    change(index);
    peft::testing::write_file(base() / "model.safetensors.index.json", index.dump());
  }
  fs::path source_;
  std::vector<std::vector<Stored>> shards_{3};
  TemporaryFolder folder_;
};

TEST_P(Shards, AreTheOneFile) { expect_same(*loaded(base()), *loaded(source_)); }

TEST_P(Shards, AMissingFileIsNamed) {
  fs::remove(base() / "model-00002-of-00003.safetensors");
  try {
    loaded(base());
    ADD_FAILURE() << "loaded without one of its files";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("model-00002-of-00003.safetensors"));
  }
}

TEST_P(Shards, AMissingTensorIsNamed) {
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  auto fewer = shards_;
  for (auto& shard : fewer) std::erase_if(shard, [&](const Stored& tensor) { return tensor.name == name; });
  peft::testing::write_base(folder_.path() / "fewer", Json::parse(peft::testing::read_file(source_ / "config.json")),
                            fewer);
  expect_error(folder_.path() / "fewer", ErrorCode::MD_WEIGHTS, "lacks tensors of the model: " + name);
}

TEST_P(Shards, AMissingExpertIsNamedByItsParameter) {
  if (!GetParam().ends_with("-v4")) GTEST_SKIP() << "experts are one tensor";
  auto fewer = shards_;
  for (auto& shard : fewer)
    std::erase_if(shard,
                  [](const Stored& tensor) { return tensor.name == "model.layers.0.mlp.experts.4.up_proj.weight"; });
  peft::testing::write_base(folder_.path() / "fewer", Json::parse(peft::testing::read_file(source_ / "config.json")),
                            fewer);
  expect_error(folder_.path() / "fewer", ErrorCode::MD_WEIGHTS, "model.layers.0.mlp.experts.gate_up_proj");
}

TEST_P(Shards, AnUnexpectedTensorIsNamed) {
  auto more = shards_;
  more[1].push_back(peft::testing::stored("model.layers.0.self_attn.extra.weight", "F32", {2}, {1, 2}));
  peft::testing::write_base(folder_.path() / "more", Json::parse(peft::testing::read_file(source_ / "config.json")),
                            more);
  expect_error(folder_.path() / "more", ErrorCode::MD_WEIGHTS, "model.layers.0.self_attn.extra.weight");
}

TEST_P(Shards, AnIndexThatNamesAnotherFileIsRefused) {
  const std::string name = "model.embed_tokens.weight";
  change_index([&](Json& index) {
    std::string& file = index["weight_map"][name].get_ref<std::string&>();
    file = file == "model-00001-of-00003.safetensors" ? "model-00002-of-00003.safetensors"
                                                      : "model-00001-of-00003.safetensors";
  });
  try {
    loaded(base());
    ADD_FAILURE() << "loaded by an index that is wrong";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(name));
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Shards, ::testing::Values("rt-qwen3_moe", "rt-qwen3_moe-v4", "rt-gpt_oss"),
                         [](const auto& row) {
                           std::string name = row.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// --------------------------------------------------------------------------------------------------------------
// quantised

Stored plain(const std::string& name, const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  std::string bytes(static_cast<std::size_t>(values.nbytes()), '\0');
  std::memcpy(bytes.data(), values.const_data_ptr(), bytes.size());
  return peft::testing::stored_bytes(name, "F32", tensor.sizes().vec(), std::move(bytes));
}

at::Tensor tensor_of(const peft::testing::Matrix& matrix) {
  return at::tensor(matrix.values, at::kDouble).to(at::kFloat).view({matrix.rows, matrix.cols});
}

// A checkpoint twice: in `folder`/packed as it is shipped, in `folder`/plain with the values that its codes stand for.
struct Twice {
  TemporaryFolder folder;
  Json config;
  std::vector<Stored> packed, values;

  // All parameters with values of their own, those of experts too.
  std::shared_ptr<CausalLM> start() const {
    fs::create_directories(folder.path() / "start");
    peft::testing::write_file(folder.path() / "start" / "config.json", config.dump());
    return init_model((folder.path() / "start").string(), {.dtype = at::kFloat, .seed = 5});
  }
  void both(const Stored& tensor) { packed.push_back(tensor), values.push_back(tensor); }
  void write(const Json& quantization) {
    peft::testing::write_base(folder.path() / "plain", config, {values});
    config["quantization_config"] = quantization;
    peft::testing::write_base(folder.path() / "packed", config, {packed});
  }
  void expect_same_model() const { expect_same(*loaded(folder.path() / "packed"), *loaded(folder.path() / "plain")); }
};

Twice gpt_oss() {
  Twice twice;
  twice.config = {{"model_type", "gpt_oss"},
                  {"architectures", {"GptOssForCausalLM"}},
                  {"vocab_size", 17},
                  {"hidden_size", 64},
                  {"intermediate_size", 32},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", 3},
                  {"num_experts_per_tok", 2},
                  {"num_attention_heads", 2},
                  {"num_key_value_heads", 1},
                  {"head_dim", 16},
                  {"sliding_window", 4},
                  {"attention_bias", true},
                  {"hidden_act", "silu"},
                  {"rms_norm_eps", 1e-5},
                  {"swiglu_limit", 7.0},
                  {"tie_word_embeddings", false},
                  {"layer_types", {"sliding_attention", "full_attention"}},
                  {"max_position_embeddings", 128},
                  {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}};
  std::uint64_t seed = 20;
  for (const auto& [name, tensor] : twice.start()->parameters()) {
    if (!name.ends_with("_proj") || tensor.dim() != 3) {
      twice.both(plain(name, tensor));
      continue;
    }
    // The parameter [experts, in, out] is the transpose of the codes.
    const Mxfp4 made = peft::testing::draw_mxfp4(name, tensor.size(0), tensor.size(2), tensor.size(1), seed++);
    twice.packed.push_back(made.blocks), twice.packed.push_back(made.scales);
    std::vector<at::Tensor> experts;
    for (const auto& expert : made.values) experts.push_back(tensor_of(expert).t());
    twice.values.push_back(plain(name, at::stack(experts)));
  }
  twice.write({{"quant_method", "mxfp4"}, {"modules_to_not_convert", {"model.layers.*.self_attn", "lm_head"}}});
  return twice;
}

// As Qwen ships it: a module for each expert, its weight in codes of float8 with one scale for each cell.
Twice qwen3_moe_fp8() {
  Twice twice;
  twice.config = {{"model_type", "qwen3_moe"},
                  {"architectures", {"Qwen3MoeForCausalLM"}},
                  {"vocab_size", 17},
                  {"hidden_size", 32},
                  {"intermediate_size", 48},
                  {"moe_intermediate_size", 16},
                  {"num_hidden_layers", 2},
                  {"num_attention_heads", 2},
                  {"num_key_value_heads", 1},
                  {"head_dim", 16},
                  {"num_experts", 3},
                  {"num_experts_per_tok", 2},
                  {"decoder_sparse_step", 1},
                  {"mlp_only_layers", Json::array()},
                  {"norm_topk_prob", true},
                  {"hidden_act", "silu"},
                  {"rms_norm_eps", 1e-6},
                  {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
                  {"max_position_embeddings", 128},
                  {"tie_word_embeddings", false},
                  {"attention_bias", false}};
  std::uint64_t seed = 40;
  const auto codes = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    const BlockFp8 made = peft::testing::draw_fp8(name, rows, cols, 16, seed++);
    twice.packed.push_back(made.codes), twice.packed.push_back(made.scales);
    twice.values.push_back(plain(name, tensor_of(made.values)));
  };
  for (const auto& [name, tensor] : twice.start()->parameters()) {
    if (name.find("self_attn") != std::string::npos && tensor.dim() == 2) {
      codes(name, tensor.size(0), tensor.size(1));
    } else if (tensor.dim() != 3) {
      twice.both(plain(name, tensor));
    } else {
      const std::string module = name.substr(0, name.rfind('.') + 1);
      const bool down = name.ends_with("down_proj");
      for (std::int64_t e = 0; e < tensor.size(0); ++e) {
        if (down) codes(fmt::format("{}{}.down_proj.weight", module, e), 32, 16);
        for (const char* half : {"gate_proj", "up_proj"}) {
          if (!down) codes(fmt::format("{}{}.{}.weight", module, e, half), 16, 32);
        }
      }
    }
  }
  twice.write({{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {16, 16}}});
  return twice;
}

TEST(QuantisedBase, Mxfp4RunsAsItsValues) { gpt_oss().expect_same_model(); }
TEST(QuantisedBase, BlockFp8RunsAsItsValues) { qwen3_moe_fp8().expect_same_model(); }

TEST(QuantisedBase, CodesWithoutScalesAreRefused) {
  Twice twice = qwen3_moe_fp8();
  const std::string name = "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv";
  std::erase_if(twice.packed, [&](const Stored& tensor) { return tensor.name == name; });
  peft::testing::write_base(twice.folder.path() / "fewer", twice.config, {twice.packed});
  expect_error(twice.folder.path() / "fewer", ErrorCode::LO_QUANT, "model.layers.1.mlp.experts.2.down_proj.weight");
}

TEST(QuantisedBase, BlocksWithoutScalesAreRefused) {
  Twice twice = gpt_oss();
  std::erase_if(twice.packed,
                [](const Stored& tensor) { return tensor.name == "model.layers.1.mlp.experts.down_proj_scales"; });
  peft::testing::write_base(twice.folder.path() / "fewer", twice.config, {twice.packed});
  expect_error(twice.folder.path() / "fewer", ErrorCode::MD_WEIGHTS, "model.layers.1.mlp.experts.down_proj");
}

}  // namespace
}  // namespace peft::nn::testing
