// Bad adapters, one row each: what is wrong with a good one, and what the error must say. Rows 50-63 and 66-73 of the
// list in docs/reliability.md. Whatever the row, nothing may be left behind and the input may not change.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "peft/error.h"
#include "peft/verbs.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kHidden = 6, kIntermediate = 4, kExperts = 3, kRank = 2;
const std::string kLayer = "base_model.model.model.layers.0.";

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// A small good per-expert adapter of a Mixtral with one layer, to be spoiled.
struct Bad {
  std::map<std::string, Tensor> tensors;
  std::string config =
      R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "w1", "w2", "w3"], "peft_version": "0.18.1"})";
  std::map<std::string, std::string> files;  // further files, or replacements
  std::string to = "peft-fused", out = "out";
  InputOptions input;

  void pair(const std::string& module, std::int64_t in, std::int64_t out_features) {
    add(module + ".lora_A.weight", {kRank, in});
    add(module + ".lora_B.weight", {out_features, kRank});
  }
  void add(const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const auto d : shape) count *= d;
    Tensor tensor{std::move(shape), {}};
    for (std::int64_t i = 0; i < count; ++i) tensor.values.push_back(static_cast<float>((i * 7 + 3) % 11) - 5);
    tensors[name] = std::move(tensor);
  }
  Bad() {
    pair(kLayer + "self_attn.q_proj", kHidden, kHidden);
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const std::string expert = kLayer + "block_sparse_moe.experts." + std::to_string(e) + ".";
      pair(expert + "w1", kHidden, kIntermediate);
      pair(expert + "w3", kHidden, kIntermediate);
      pair(expert + "w2", kIntermediate, kHidden);
    }
  }
};

struct Row {
  int number;
  std::string what;
  std::function<void(Bad&)> spoil;
  ErrorCode code;
  std::vector<std::string> words;
};

std::string expert(int e, const std::string& rest) {
  return kLayer + "block_sparse_moe.experts." + std::to_string(e) + "." + rest;
}

std::string config_with(const std::string& changes) {
  return R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "w1", "w2", "w3"], )" +
         changes + "}";
}

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {50,
       "config missing",
       [](Bad& b) { b.files["adapter_config.json"] = "-"; },
       ErrorCode::CF_FORM,
       {"adapter_config.json"}},
      {50, "config not JSON", [](Bad& b) { b.config = "{\"r\": 2,"; }, ErrorCode::CF_FORM, {"adapter_config.json"}},
      {50, "config is a list", [](Bad& b) { b.config = "[]"; }, ErrorCode::CF_FORM, {"object"}},
      {51,
       "another method",
       [](Bad& b) { b.config = R"({"peft_type": "IA3", "r": 2})"; },
       ErrorCode::CF_TYPE,
       {"IA3", "LORA"}},
      {52,
       "rank 0",
       [](Bad& b) { b.config = R"({"peft_type": "LORA", "r": 0, "target_modules": ["q_proj"]})"; },
       ErrorCode::CF_RANK,
       {"0"}},
      {52,
       "rank as text",
       [](Bad& b) { b.config = R"({"peft_type": "LORA", "r": "8", "target_modules": ["q_proj"]})"; },
       ErrorCode::CF_RANK,
       {"8"}},
      {53,
       "alpha too large",
       [](Bad& b) { b.config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 1e400})"; },
       ErrorCode::CF_ALPHA,
       {"lora_alpha"}},
      {54,
       "rank of the config is not the tensor's",
       [](Bad& b) { b.config = R"({"peft_type": "LORA", "r": 3, "lora_alpha": 4, "target_modules": ["q_proj"]})"; },
       ErrorCode::LO_RANK,
       {"rank 3", "rank 2", "lora_A"}},
      {55,
       "pattern that is no regular expression",
       [](Bad& b) { b.config = config_with(R"("rank_pattern": {"(w1": 4})"); },
       ErrorCode::CF_REGEX,
       {"(w1"}},
      {56,
       "arithmetic that is not implemented",
       [](Bad& b) { b.config = config_with(R"("kasa_config": {"beta": 1})"); },
       ErrorCode::CF_UNSUP,
       {"kasa_config"}},
      {58,
       "A without B",
       [](Bad& b) { b.tensors.erase(expert(1, "w3.lora_B.weight")); },
       ErrorCode::LO_PAIR,
       {"experts.1.w3.lora_A", "experts.1.w3.lora_B"}},
      {58,
       "B without A",
       [](Bad& b) { b.tensors.erase(kLayer + "self_attn.q_proj.lora_A.weight"); },
       ErrorCode::LO_PAIR,
       {"q_proj.lora_B", "q_proj.lora_A"}},
      {59,
       "target that the model does not have",
       [](Bad& b) { b.pair("base_model.model.model.layers.7.self_attn.q_proj", kHidden, kHidden); },
       ErrorCode::LO_TARGET,
       {"layers.7.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_B"}},
      {60,
       "A and B of different ranks",
       [](Bad& b) {
         b.add(expert(0, "w1.lora_B.weight"), {kIntermediate, kRank + 1});
       },
       ErrorCode::LO_SHAPE,
       {"experts.0.w1"}},
      {60,
       "pair that does not fit the expert",
       [](Bad& b) {
         b.add(expert(0, "w1.lora_A.weight"), {kRank, kHidden + 1});
       },
       ErrorCode::LO_SHAPE,
       {"experts.0.w1", "[2, 7]"}},
      {60,
       "pair that does not fit the module",
       [](Bad& b) {
         b.add(kLayer + "self_attn.q_proj.lora_A.weight", {kRank, kHidden + 2});
       },
       ErrorCode::LO_SHAPE,
       {"q_proj", "[2, 8]"}},
      {61, "no LoRA at all", [](Bad& b) { b.tensors.clear(); }, ErrorCode::LO_NONE, {"adapter_model.safetensors"}},
      {62,
       "tensor of another method",
       [](Bad& b) { b.add(kLayer + "self_attn.q_proj.lora_diag", {kRank}); },
       ErrorCode::LO_SUFFIX,
       {"lora_diag"}},
      {62,
       "LyCORIS alpha",
       [](Bad& b) { b.add(kLayer + "self_attn.q_proj.alpha", {1}); },
       ErrorCode::LO_SUFFIX,
       {"alpha"}},
      {63,
       "NaN in a factor",
       [](Bad& b) { b.tensors[expert(2, "w2.lora_B.weight")].values[5] = std::nanf(""); },
       ErrorCode::NUM_NONFINITE,
       {"experts.2.w2.lora_B", "NaN"}},
      {66,
       "an expert too many",
       [](Bad& b) { b.pair(expert(3, "w1"), kHidden, kIntermediate); },
       ErrorCode::LO_EXPERT,
       {"experts.3.w1.lora_A", "experts.3.w1.lora_B"}},
      {66,
       "expert number that is not plain",
       [](Bad& b) { b.pair(kLayer + "block_sparse_moe.experts.01.w1", kHidden, kIntermediate); },
       ErrorCode::LO_EXPERT,
       {"experts.01.w1"}},
      {67,
       "two names for one target",
       [](Bad& b) {
         b.add("model.layers.0.self_attn.q_proj.lora_A.weight", {kRank, kHidden});
       },
       ErrorCode::LO_AMBIG,
       {"q_proj.lora_A"}},
      {68,
       "embedding with other rows",
       [](Bad& b) {
         b.config = config_with(R"("bias": "none")");
         b.add("base_model.model.model.embed_tokens.lora_embedding_A", {kRank, 99});
         b.add("base_model.model.model.embed_tokens.lora_embedding_B", {kHidden, kRank});
       },
       ErrorCode::LO_VOCAB,
       {"embed_tokens", "99"}},
      {70, "output is the input", [](Bad& b) { b.out = "adapter"; }, ErrorCode::OUT_ALIAS, {"adapter"}},
      {71, "output exists", [](Bad& b) { b.files["../out/something"] = "x"; }, ErrorCode::OUT_EXISTS, {"out"}},
      {73,
       "pickle",
       [](Bad& b) {
         b.files["adapter_model.safetensors"] = "-";
         b.files["adapter_model.bin"] = "\x80\x02}.";
       },
       ErrorCode::E_PICKLE,
       {"adapter_model.bin"}},
      {0,
       "a weight of the base model inside",
       [](Bad& b) { b.add("base_model.model.model.norm.weight", {kHidden}); },
       ErrorCode::LO_UNUSED,
       {"model.norm.weight"}},
      {0,
       "key that belongs to nothing",
       [](Bad& b) { b.add("something.else", {4}); },
       ErrorCode::LO_UNUSED,
       {"something.else"}},
      {0,
       "DoRA on experts",
       [](Bad& b) {
         b.config = config_with(R"("use_dora": true)");
         for (int e = 0; e < 3; ++e) b.add(expert(e, "w1.lora_magnitude_vector"), {kIntermediate});
       },
       ErrorCode::LO_NO_FORM,
       {"DoRA"}},
  };
  return kRows;
}

std::string model_config() {
  return R"({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 6, "intermediate_size": 4, "num_local_experts": 3,
             "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 3, "vocab_size": 10})";
}

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string safetensors(const std::map<std::string, Tensor>& content) {
  std::vector<NewTensor> tensors;
  for (const auto& [name, tensor] : content) tensors.push_back({name, Dtype::f32, tensor.shape});
  const FileLayout layout = layout_file(tensors);
  std::string bytes(layout.file_bytes(), '\0');
  std::memcpy(bytes.data(), layout.head.data(), layout.head.size());
  std::size_t i = 0;
  for (const auto& [name, tensor] : content) {
    std::memcpy(bytes.data() + layout.head.size() + layout.begin[i++], tensor.values.data(),
                tensor.values.size() * sizeof(float));
  }
  return bytes;
}

// The base model's headers; its weights are zeros.
std::map<std::string, Tensor> base_tensors() {
  std::map<std::string, Tensor> tensors;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    tensors[name] = {shape, std::vector<float>(static_cast<std::size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)))};
  };
  add("model.embed_tokens.weight", {10, kHidden});
  add("lm_head.weight", {10, kHidden});
  add("model.norm.weight", {kHidden});
  for (const std::string name : {"q", "k", "v", "o"})
    add("model.layers.0.self_attn." + name + "_proj.weight", {kHidden, kHidden});
  add("model.layers.0.block_sparse_moe.gate.weight", {kExperts, kHidden});
  for (std::int64_t e = 0; e < kExperts; ++e) {
    const std::string expert = "model.layers.0.block_sparse_moe.experts." + std::to_string(e) + ".";
    add(expert + "w1.weight", {kIntermediate, kHidden});
    add(expert + "w2.weight", {kHidden, kIntermediate});
    add(expert + "w3.weight", {kIntermediate, kHidden});
  }
  return tensors;
}

class Sandbox {
 public:
  explicit Sandbox(const Bad& bad) {
    std::string pattern = (fs::temp_directory_path() / "peft_bad_XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    write(root_ / "base" / "config.json", model_config());
    write(root_ / "base" / "model.safetensors", safetensors(base_tensors()));
    write(root_ / "adapter" / "adapter_config.json", bad.config);
    write(root_ / "adapter" / "adapter_model.safetensors", safetensors(bad.tensors));
    for (const auto& [name, text] : bad.files) {
      if (text == "-")
        fs::remove(root_ / "adapter" / name);
      else
        write(root_ / "adapter" / name, text);
    }
  }
  ~Sandbox() { fs::remove_all(root_); }
  fs::path operator/(const std::string& name) const { return root_ / name; }
  // Every file with its contents.
  std::map<std::string, std::string> snapshot() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      files[fs::relative(entry.path(), root_).string()] = std::string(std::istreambuf_iterator<char>(in), {});
    }
    return files;
  }

 private:
  fs::path root_;
};

void convert(const Sandbox& box, const Bad& bad) {
  ConvertOptions options;
  options.input = bad.input;
  options.to = *parse_layout(bad.to);
  options.input.base = (box / "base").string();
  const Input input = load((box / "adapter").string(), options.input);
  execute(plan_convert(input, options), (box / bad.out).string(), {.threads = 1, .sync = false});
}

TEST(BadAdapter, TheGoodOneConverts) {
  const Bad good;
  const Sandbox box(good);
  EXPECT_NO_THROW(convert(box, good));
  EXPECT_TRUE(fs::exists(box / "out/adapter_model.safetensors"));
}

TEST(BadAdapter, EveryRow) {
  for (const Row& row : rows()) {
    SCOPED_TRACE(std::to_string(row.number) + " " + row.what);
    Bad bad;
    row.spoil(bad);
    const Sandbox box(bad);
    const auto before = box.snapshot();
    try {
      convert(box, bad);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(info(error.code()).name, info(row.code).name) << error.what();
      for (const std::string& word : row.words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << word << " in: " << error.what();
    }
    EXPECT_EQ(box.snapshot(), before);
  }
}

TEST(BadAdapter, IgnoringUnusedGoesOn) {
  Bad bad;
  bad.add("something.else", {4});
  bad.tensors.erase(expert(1, "w3.lora_B.weight"));
  bad.pair(expert(3, "w1"), kHidden, kIntermediate);
  bad.input.read.ignore_unused = true;
  const Sandbox box(bad);
  EXPECT_NO_THROW(convert(box, bad));
}

}  // namespace
}  // namespace peft
