#include "support/tiny_moe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

std::string text_of(const VerifyMergedReport& report) {
  std::string text;
  for (const auto& d : report.differences) text += std::string(name(d.kind)) + " " + d.tensor + ": " + d.what + "\n";
  return text;
}

// "model.layers.0.mlp.experts" of "model.layers.0.mlp.experts.1.up_proj.weight": what every name of a difference begins
// with.
std::string subject_of(const std::string& tensor) {
  const auto experts = tensor.find(".experts");
  if (experts != std::string::npos) return tensor.substr(0, experts + 8);
  return tensor.substr(0, tensor.rfind('.'));
}

}  // namespace

TinyMoe::TinyMoe(std::string stored_dtype, Output output, Experts experts) : dtype(std::move(stored_dtype)) {
  Draw draw(3);
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) count *= size;
    tensors.emplace(name, stored(name, dtype, std::move(shape), draw.matrix(1, count, 0.125, 40).values));
  };
  add("model.embed_tokens.weight", {kVocabulary, kHidden});
  add("model.norm.weight", {kHidden});
  for (std::int64_t l = 0; l < kLayers; ++l) {
    const std::string layer = fmt::format("model.layers.{}.", l);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      add(layer + "self_attn." + name + ".weight", {kOut, kHidden});
      add(layer + "self_attn." + name + ".bias", {kOut});
    }
    add(layer + "mlp.gate.weight", {kExperts, kHidden});
    if (experts == Experts::fused) {
      add(layer + "mlp.experts.gate_up_proj", {kExperts, 2 * kIntermediate, kHidden});
      add(layer + "mlp.experts.down_proj", {kExperts, kHidden, kIntermediate});
      continue;
    }
    for (std::int64_t e = 0; e < kExperts; ++e) {
      add(fmt::format("{}mlp.experts.{}.gate_proj.weight", layer, e), {kIntermediate, kHidden});
      add(fmt::format("{}mlp.experts.{}.up_proj.weight", layer, e), {kIntermediate, kHidden});
      add(fmt::format("{}mlp.experts.{}.down_proj.weight", layer, e), {kHidden, kIntermediate});
    }
  }
  if (output == Output::own) add("lm_head.weight", {kVocabulary, kHidden});
  if (output == Output::tied_and_stored) {
    Stored copy = at("model.embed_tokens.weight");
    copy.name = "lm_head.weight";
    tensors.emplace(copy.name, copy);
  }
  config = {{"model_type", "qwen3_moe"},
            {"architectures", {"Qwen3MoeForCausalLM"}},
            {"hidden_size", kHidden},
            {"intermediate_size", 10},
            {"moe_intermediate_size", kIntermediate},
            {"num_hidden_layers", kLayers},
            {"num_experts", kExperts},
            {"num_experts_per_tok", 1},
            {"num_attention_heads", 2},
            {"num_key_value_heads", 2},
            {"head_dim", 4},
            {"attention_bias", true},
            {"vocab_size", kVocabulary},
            {"tie_word_embeddings", output != Output::own},
            {"torch_dtype", "bfloat16"}};
}

void TinyMoe::write_base_folder(std::size_t files) const {
  std::vector<std::vector<Stored>> shards(files);
  std::size_t i = 0;
  for (const auto& [name, tensor] : tensors) shards[i++ * files / tensors.size()].push_back(tensor);
  write_base(folder / "base", config, shards);
}

Matrix TinyMoe::matrix(const std::string& name) const {
  const Stored& tensor = at(name);
  const std::int64_t rows = tensor.shape.size() < 2 ? 1 : tensor.shape[0];
  return {rows, static_cast<std::int64_t>(tensor.values.size()) / rows, tensor.values};
}

MergeOptions TinyMoe::options(std::vector<std::string> adapters) const {
  MergeOptions options;
  options.base = folder / "base";
  for (const std::string& name : adapters) options.adapters.push_back({folder / name, 1});
  return options;
}

std::map<std::string, Found> TinyMoe::merge(const MergeOptions& options) const {
  fs::remove_all(folder / "out");
  execute(plan_merge(options).plan, folder / "out");
  return tensors_in(folder / "out");
}

std::vector<double>& Lora::effect(const std::string& weight) {
  return effects_.try_emplace(weight, model_.at(weight).values).first->second;
}

void Lora::linear(const std::string& module, bool dora, bool bias, const std::string& weight) {
  const std::string name = weight.empty() ? module + ".weight" : weight, key = "base_model.model." + module + ".";
  const Matrix base = model_.matrix(name);
  const Matrix a = draw_.matrix(rank_, base.cols, 0.5, 3), b = draw_.matrix(base.rows, rank_, 0.5, 3);
  tensors_.push_back(stored(key + "lora_A.weight", "F32", a));
  tensors_.push_back(stored(key + "lora_B.weight", "F32", b));
  const Matrix delta = scaled(scale(), product(b, a));
  std::vector<double>& values = effect(name);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += delta.values[i];
  if (dora) {
    const Matrix m = draw_.matrix(1, base.rows, 0.25, 2);
    std::vector<double> magnitudes;
    for (std::int64_t row = 0; row < base.rows; ++row) {
      double square = 0;
      for (std::int64_t j = 0; j < base.cols; ++j)
        square += values[static_cast<std::size_t>(row * base.cols + j)] *
                  values[static_cast<std::size_t>(row * base.cols + j)];
      const double norm = std::sqrt(square),
                   magnitude = nearest("F32", norm * (1 + m.values[static_cast<std::size_t>(row)]));
      magnitudes.push_back(magnitude);
      for (std::int64_t j = 0; j < base.cols; ++j)
        values[static_cast<std::size_t>(row * base.cols + j)] *= magnitude / norm;
    }
    tensors_.push_back(stored(key + "lora_magnitude_vector", "F32", {base.rows}, magnitudes));
  }
  if (!bias) return;
  const Matrix added = draw_.matrix(1, base.rows, 0.5, 5);
  tensors_.push_back(stored(key + "lora_B.bias", "F32", {base.rows}, added.values));
  std::vector<double>& biases = effect(module + ".bias");
  for (std::size_t i = 0; i < biases.size(); ++i) biases[i] += scale() * added.values[i];
}

void Lora::embedding(const std::string& module) {
  const std::string name = module + ".weight", key = "base_model.model." + module + ".";
  const Matrix base = model_.matrix(name);
  const Matrix a = draw_.matrix(rank_, base.rows, 0.5, 3), b = draw_.matrix(base.cols, rank_, 0.5, 3);
  tensors_.push_back(stored(key + "lora_embedding_A", "F32", a));
  tensors_.push_back(stored(key + "lora_embedding_B", "F32", b));
  const Matrix delta = scaled(scale(), transposed(product(b, a)));
  std::vector<double>& values = effect(name);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += delta.values[i];
}

void Lora::saved(const std::string& module, const std::string& parameter, std::int64_t rows, std::int64_t cols,
                 const std::string& key) {
  const Matrix values = draw_.matrix(rows, cols, 0.125, 30);
  const std::vector<std::int64_t> shape = rows == 1 ? std::vector{cols} : std::vector{rows, cols};
  tensors_.push_back(
      stored("base_model.model." + module + "." + (key.empty() ? parameter : key), "F32", shape, values.values));
  effects_[module + "." + parameter] = values.values;
}

void Lora::tokens(const std::string& module, const std::vector<std::int64_t>& ids) {
  std::vector<double>& values = effect(module + ".weight");
  const std::int64_t cols = model_.at(module + ".weight").shape[1];
  const Matrix rows = draw_.matrix(static_cast<std::int64_t>(ids.size()), cols, 0.125, 30);
  tensors_.push_back(stored("base_model.model." + module + ".token_adapter.trainable_tokens_delta", "F32", rows));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::int64_t j = 0; j < cols; ++j)
      values[static_cast<std::size_t>(ids[i] * cols + j)] = rows.at(static_cast<std::int64_t>(i), j);
  }
}

void Lora::expert_parameter(const std::string& module, const std::string& parameter) {
  const Stored& base = model_.at(module + "." + parameter);
  std::vector<double>& values = effect(base.name);
  std::vector<ExpertFactors> pairs;
  std::size_t at = 0;
  for (std::int64_t e = 0; e < base.shape[0]; ++e) {
    pairs.push_back({draw_.matrix(rank_, base.shape[2], 0.5, 3), draw_.matrix(base.shape[1], rank_, 0.5, 3)});
    for (const double d : product(pairs.back().b, pairs.back().a).values) values[at++] += scale() * d;
  }
  const FusedPair fused = fuse(pairs, false, false);
  tensors_.push_back(stored("base_model.model." + module + ".lora_A.weight", "F32", fused.a));
  tensors_.push_back(stored("base_model.model." + module + ".lora_B.weight", "F32", fused.b));
}

void Lora::write(const std::string& name, const Json& changes) {
  write_lora(model_.folder / name, lora_config(rank_, alpha_, changes), tensors_);
}

void expect_merged(const TinyMoe& model, const std::map<std::string, Found>& out,
                   const std::map<std::string, std::vector<double>>& effects, bool one_place_off) {
  std::size_t expected = model.tensors.size();
  for (const auto& [name, values] : effects) {
    expected += model.tensors.contains(name) ? 0 : 1;
    ASSERT_TRUE(out.contains(name)) << name;
    const Found& found = out.at(name);
    EXPECT_EQ(found.dtype, model.dtype) << name;
    ASSERT_EQ(found.values.size(), values.size()) << name;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double want = nearest(model.dtype, values[i]),
                   place = std::ldexp(std::fabs(want), model.dtype == "F32"   ? -22
                                                       : model.dtype == "F16" ? -9
                                                                              : -6);
      EXPECT_NEAR(found.values[i], want, one_place_off ? place : 0) << name << " element " << i;
    }
  }
  for (const auto& [name, tensor] : model.tensors) {
    if (effects.contains(name)) continue;
    ASSERT_TRUE(out.contains(name)) << name;
    EXPECT_TRUE(out.at(name).bytes == tensor.bytes && out.at(name).dtype == tensor.dtype &&
                out.at(name).shape == tensor.shape)
        << name;
  }
  EXPECT_EQ(out.size(), expected);
}

void expect_verified(const TinyMoe& model, const MergeOptions& options) {
  VerifyMergedOptions verify;
  verify.merge = options;
  verify.merged = model.folder / "out";
  const VerifyMergedReport good = verify_merged(verify);
  EXPECT_TRUE(good.same) << text_of(good);
  for (const auto& [name, found] : tensors_in(model.folder / "out")) {
    if (!model.tensors.contains(name) || model.at(name).bytes == found.bytes ||
        model.at(name).bytes.size() != found.bytes.size())
      continue;
    const fs::path file = fs::path(verify.merged) / found.file;
    const std::string image = read_file(file);
    std::string broken = image;
    broken.replace(found.begin, found.bytes.size(), model.at(name).bytes);
    write_file(file, broken);
    const VerifyMergedReport bad = verify_merged(verify);
    EXPECT_FALSE(bad.same) << name << " left unmerged";
    for (const auto& difference : bad.differences) {
      EXPECT_TRUE(difference.tensor.starts_with(subject_of(name))) << name << ": " << text_of(bad);
      EXPECT_NE(difference.kind, MergedDifference::Kind::changed) << "an adapter touches it: " << text_of(bad);
    }
    write_file(file, image);
  }
}

}  // namespace peft::testing
