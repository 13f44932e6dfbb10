// LoRA files for llama.cpp: every row of data/gguf_names.json there and back, and what has no form or is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <regex>
#include <set>

#include "gguf/gguf_file.h"
#include "layout/encode/encode.h"
#include "layout/gguf/decode.h"
#include "peft/execute.h"
#include "support/gguf_files.h"
#include "support/test_tensors.h"

namespace peft::layout {
namespace {

using testing::Dense;
using testing::random_dense;

constexpr std::int64_t kHeads = 3, kKvHeads = 2, kExperts = 12, kHidden = 24, kInner = 20;

// An adapter with random factors on any modules.
class Maker {
 public:
  void dense(const std::string& module, std::int64_t out, std::int64_t in, std::int64_t rank, double scale,
             FactorKind kind = FactorKind::linear) {
    add({module, "", -1, Projection::none}, out, in, rank, scale).kind = kind;
  }
  Factor& add(Site site, std::int64_t out, std::int64_t in, std::int64_t rank, double scale) {
    const auto a = tensors_.add(std::to_string(seed_) + "a", Dtype::f32, random_dense(rank, in, seed_));
    const auto b = tensors_.add(std::to_string(seed_) + "b", Dtype::f32, random_dense(out, rank, seed_ + 1));
    seed_ += 2;
    Factor factor{.site = std::move(site),
                  .out = out,
                  .in = in,
                  .rank = rank,
                  .scale = scale,
                  .a = testing::whole(a, rank, in),
                  .b = testing::whole(b, out, rank)};
    return factors.factors.emplace_back(std::move(factor));
  }
  void experts(const std::string& module, const std::vector<Projection>& projections, std::int64_t rank, double scale) {
    factors.expert_counts.push_back({module, kExperts});
    for (std::int64_t e = 0; e < kExperts; ++e) {
      for (const Projection p : projections) {
        const bool down = p == Projection::down;
        add({module, "", e, p}, down ? kHidden : kInner, down ? kInner : kHidden, rank + (e == 3 ? 1 : 0), scale);
      }
    }
  }
  std::shared_ptr<const TensorFile> finish() {
    std::ranges::stable_sort(factors.factors, [](const auto& x, const auto& y) { return site_less(x.site, y.site); });
    return tensors_.file();
  }

  Factors factors;

 private:
  testing::Tensors tensors_;
  std::uint64_t seed_ = 1;
};

Dense values(const TensorFile& file, const View& view) {
  Dense result(view.rows, view.cols);
  const auto bytes = file.bytes(file.tensors()[view.tensor]);
  for (std::int64_t i = 0; i < view.rows; ++i) {
    for (std::int64_t j = 0; j < view.cols; ++j) {
      float value = 0;
      std::memcpy(&value, bytes.data() + 4 * (view.offset + i * view.row_stride + j * view.col_stride), 4);
      result.at(i, j) = value;
    }
  }
  return result;
}

std::map<std::string, Dense> deltas(const Factors& factors, const TensorFile& file) {
  std::map<std::string, Dense> result;
  for (const Factor& factor : factors.factors)
    result.emplace(describe(factor.site), product(values(file, factor.b), values(file, factor.a), factor.scale));
  return result;
}

void expect_same(const std::map<std::string, Dense>& want, const std::map<std::string, Dense>& got, double tolerance) {
  for (const auto& [site, delta] : want) {
    const auto found = got.find(site);
    ASSERT_TRUE(found != got.end()) << site;
    ASSERT_EQ(found->second.values.size(), delta.values.size()) << site;
    for (std::size_t i = 0; i < delta.values.size(); ++i)
      ASSERT_NEAR(found->second.values[i], delta.values[i], tolerance) << site << " element " << i;
  }
  for (const auto& [site, delta] : got)
    EXPECT_TRUE(want.contains(site) || delta.norm() == 0) << site << " came from nowhere";
}

struct Written {
  std::vector<std::byte> image;
  Adapter adapter;
  Encoded encoded;
};
Written write(const Factors& factors, const Model& model, const std::shared_ptr<const TensorFile>& file,
              EncodeOptions options = {}) {
  Written written;
  options.to = Layout::gguf;
  written.encoded = encode(factors, model, file.get(), options);
  Plan plan;
  plan.sources = {file};
  plan.files.push_back({.name = "a.gguf", .tensors = written.encoded.tensors, .gguf = written.encoded.gguf});
  plan.single_file = true;
  written.image = execute_in_memory(plan).front();
  written.adapter.form = AdapterForm::gguf;
  written.adapter.weights = gguf::GgufFile::parse(written.image, "a.gguf");
  return written;
}

Reading read_back(Written& written, const Model& model) {
  written.adapter.weights = with_rows_in_order(written.adapter, model);
  ReadOptions options;
  options.verb = Verb::convert;
  return read(written.adapter, model, options);
}

Model model_of(const std::string& type, std::vector<std::string> names) {
  Model model = describe({.family = type, .num_experts = kExperts, .names = std::move(names)});
  model.num_heads = kHeads, model.num_kv_heads = kKvHeads;
  model.tie_word_embeddings = false;
  return model;
}

std::vector<std::string> paths_of(const GgufNames& names) {
  std::vector<std::string> paths;
  for (const std::int64_t layer : {0, 2, 11}) {
    for (const auto& tensor : names.tensors) paths.push_back(gguf_module_path(names.prefix, layer, tensor.module));
    if (!names.experts.empty()) paths.push_back(gguf_module_path(names.prefix, layer, names.experts));
  }
  return paths;
}

// The error that the action ends in; nothing when it succeeds.
std::optional<ErrorCode> code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return std::nullopt;
}

// ---- the table

TEST(GgufNames, RowsAreWhole) {
  std::set<std::string> types;
  for (const GgufNames& names : all_gguf_names()) {
    EXPECT_FALSE(names.architecture.empty());
    EXPECT_FALSE(names.prefix.empty()) << names.architecture;
    std::set<std::string> tensors, modules;
    for (const std::string& type : names.types) EXPECT_TRUE(types.insert(type).second) << type << " has two rows";
    for (const auto& tensor : names.tensors) {
      EXPECT_TRUE(tensors.insert(tensor.name).second) << tensor.name;
      EXPECT_TRUE(modules.insert(tensor.module).second) << tensor.module;
      EXPECT_TRUE(!tensor.permuted || tensor.name == "attn_q" || tensor.name == "attn_k") << tensor.name;
      const std::string name = gguf_tensor_name(3, tensor.name) + ".lora_b";
      const auto key = parse_gguf_key(name);
      ASSERT_TRUE(key) << name;
      EXPECT_EQ(key->tensor, tensor.name);
    }
    for (const std::string& module : names.changed) EXPECT_FALSE(modules.contains(module)) << module;
  }
  for (const char* type : {"mixtral", "llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen3_5_moe", "gpt_oss",
                           "deepseek_v3", "glm4_moe", "olmoe", "granitemoe", "gemma4"})
    EXPECT_NE(find_gguf_names(type), nullptr) << type;
}

TEST(GgufNames, KeysAreTakenApart) {
  const auto key = parse_gguf_key("blk.12.ffn_up_exps.weight.lora_a");
  ASSERT_TRUE(key);
  EXPECT_EQ(key->layer, 12);
  EXPECT_EQ(key->tensor, "ffn_up_exps");
  EXPECT_EQ(key->half, 'a');
  EXPECT_EQ(parse_gguf_key("token_embd.weight.lora_b")->layer, -1);
  for (const char* bad : {"blk.012.attn_q.weight.lora_a", "blk..attn_q.weight.lora_a", "blk.1.weight.lora_a",
                          "blk.-1.a.weight.lora_a", "blk.1.attn_q.lora_a", "blk.1.attn_q.weight.lora_c",
                          ".weight.lora_a", "blk.99999999999999999999.a.weight.lora_a", "blk.0.attn_norm.weight"})
    EXPECT_FALSE(parse_gguf_key(bad)) << bad;
}

// ---- there and back

// The first of the row's types that the table of families has; "" where it has none (parts of composite models).
std::string known_type(const GgufNames& names) {
  static const std::set<std::string> known = [] {
    std::set<std::string> types;
    for (const FamilyRow& row : families()) types.insert(row.model_type);
    return types;
  }();
  for (const std::string& type : names.types)
    if (known.contains(type)) return type;
  return {};
}

class EveryRow : public ::testing::TestWithParam<const GgufNames*> {};

TEST_P(EveryRow, GoesThereAndBack) {
  const GgufNames& names = *GetParam();
  const Model model = model_of(known_type(names), paths_of(names));
  Maker maker;
  std::set<std::string> tensors;
  for (const std::int64_t layer : {0, 2, 11}) {
    for (std::size_t i = 0; i < names.tensors.size(); ++i) {
      const auto& tensor = names.tensors[i];
      const bool top = tensor.name == "token_embd" || tensor.name == "output";
      if (top && layer != 0) continue;
      // Widths that are whole heads, and no two alike.
      const std::int64_t out = tensor.name == "attn_q"   ? 4 * 2 * kHeads
                               : tensor.name == "attn_k" ? 5 * 2 * kKvHeads
                                                         : 7 + static_cast<std::int64_t>(i);
      maker.dense(gguf_module_path(names.prefix, top ? -1 : layer, tensor.module), out,
                  31 + static_cast<std::int64_t>(i), 2 + layer % 3, i % 4 == 1 ? 0.7 : 1.5,
                  tensor.name == "token_embd" ? FactorKind::embedding : FactorKind::linear);
      tensors.insert(gguf_tensor_name(top ? -1 : layer, tensor.name) + ".lora_a");
    }
    if (names.experts.empty() || model.experts.empty()) continue;
    const std::string module = gguf_module_path(names.prefix, layer, names.experts);
    // One-sided in one layer; all three projections in the others.
    if (layer == 2 && !names.fused_gate_up)
      maker.experts(module, {Projection::down}, 3, 0.5);
    else
      maker.experts(module, {Projection::gate, Projection::up, Projection::down}, 2, layer == 0 ? 2.5 : 1.5);
  }
  const auto file = maker.finish();
  Written written = write(maker.factors, model, file);
  for (const std::string& name : tensors) EXPECT_NE(written.adapter.weights->find(name), nullptr) << name;
  const Reading reading = read_back(written, model);
  expect_same(deltas(maker.factors, *file), deltas(reading.factors, *written.adapter.weights), 1e-5);
}

std::vector<const GgufNames*> every_row() {
  std::vector<const GgufNames*> rows;
  for (const GgufNames& names : all_gguf_names())
    if (!known_type(names).empty()) rows.push_back(&names);
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Gguf, EveryRow, ::testing::ValuesIn(every_row()), [](const auto& row) {
  return std::regex_replace(known_type(*row.param), std::regex("[^a-z0-9]"), "_");
});

// One alpha, one rank: nothing is multiplied, and what is one tensor in llama.cpp keeps its values.
TEST(Gguf, KeepsEveryValueWhereOneAlphaServes) {
  const auto* names = find_gguf_names("qwen3_moe");
  const Model model = model_of("qwen3_moe", paths_of(*names));
  Maker maker;
  maker.dense("model.layers.2.self_attn.q_proj", 10, 14, 4, 5.0 / 4);
  maker.dense("model.layers.2.mlp.gate", 12, 14, 3, 5.0 / 3);
  const auto file = maker.finish();
  Written written = write(maker.factors, model, file);
  EXPECT_EQ(written.encoded.exactness, Exactness::bit_exact);
  const auto* alpha = gguf::find_value(written.encoded.gguf->values, "adapter.lora.alpha");
  EXPECT_EQ(gguf::as_number(*alpha), 5);
  for (const Factor& factor : read_back(written, model).factors.factors)
    EXPECT_EQ(factor.scale, 5.0 / static_cast<double>(factor.rank));
}

TEST(Gguf, AnAlphaOfZeroIsWrittenAsZeros) {
  const Model model = model_of("qwen3_moe", paths_of(*find_gguf_names("qwen3_moe")));
  Maker maker;
  maker.dense("model.layers.2.self_attn.q_proj", 10, 14, 4, 0);
  const auto file = maker.finish();
  Written written = write(maker.factors, model, file);
  for (const auto& [site, delta] : deltas(read_back(written, model).factors, *written.adapter.weights))
    EXPECT_EQ(delta.norm(), 0);
}

TEST(Gguf, PacksWhatFillsBlocks) {
  const Model model = model_of("qwen3_moe", paths_of(*find_gguf_names("qwen3_moe")));
  Maker maker;
  maker.dense("model.layers.2.self_attn.q_proj", 10, 64, 4, 1);
  const auto file = maker.finish();
  EncodeOptions options;
  options.q8_0 = true;
  Written written = write(maker.factors, model, file, options);
  EXPECT_EQ(written.adapter.weights->find("blk.2.attn_q.weight.lora_a")->dtype_name, "Q8_0");
  EXPECT_EQ(written.adapter.weights->find("blk.2.attn_q.weight.lora_b")->dtype_name, "F16");
  ASSERT_EQ(written.encoded.warnings.size(), 1U);
  EXPECT_NE(written.encoded.warnings[0].find("lora_b"), std::string::npos);
  // Opened as an adapter, it is read as numbers.
  written.adapter.weights = dynamic_cast<const gguf::GgufFile&>(*written.adapter.weights).unpacked();
  const Reading reading = read_back(written, model);
  const auto got = to_delta(*written.adapter.weights, reading.factors.factors[0]);
  const Dense right = deltas(maker.factors, *file).begin()->second;
  ASSERT_EQ(got.size(), right.values.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], right.values[i], 0.02 * right.norm()) << i;
}

// ---- what has no form

TEST(Gguf, RefusesWhatLlamaCppDoesNotTake) {
  const auto refused = [](const std::string& type, const std::string& module,
                          const std::function<void(Maker&, Model&)>& change = {}) {
    const auto* names = find_gguf_names(type);
    Model model = model_of(type, names == nullptr ? std::vector<std::string>{module} : paths_of(*names));
    Maker maker;
    maker.dense(module, 24, 14, 4, 1);
    if (change) change(maker, model);
    return code_of([&] {
      const auto file = maker.finish();
      write(maker.factors, model, file);
    });
  };
  EXPECT_EQ(refused("deepseek_v3", "model.layers.2.self_attn.kv_b_proj"), ErrorCode::LO_NO_FORM);
  EXPECT_EQ(refused("qwen3_5_moe_text", "model.layers.2.linear_attn.in_proj_qkv"), ErrorCode::LO_NO_FORM);
  EXPECT_EQ(refused("qwen3_moe", "model.layers.2.self_attn.nothing"), ErrorCode::LO_NO_FORM);
  EXPECT_EQ(refused("qwen3_5_moe", "model.visual.layers.2.self_attn.q_proj"), ErrorCode::LO_NO_FORM)
      << "not the text model's";
  EXPECT_EQ(refused("phimoe", "model.layers.2.self_attn.q_proj"), ErrorCode::LO_NO_FORM) << "no such architecture";
  EXPECT_EQ(refused("qwen3_moe", "lm_head", [](Maker&, Model& model) { model.tie_word_embeddings = true; }),
            ErrorCode::LO_NO_FORM);
  EXPECT_EQ(refused("mixtral", "model.layers.2.self_attn.q_proj", [](Maker&, Model& model) { model.num_heads = 0; }),
            ErrorCode::MD_NEEDED);
  EXPECT_EQ(refused("mixtral", "model.layers.2.self_attn.q_proj", [](Maker&, Model& model) { model.num_heads = 5; }),
            ErrorCode::LO_SHAPE);
  EXPECT_EQ(refused("qwen3_moe", "model.layers.2.self_attn.q_proj",
                    [](Maker& maker, Model&) {
                      maker.factors.extras.push_back({ExtraKind::magnitude,
                                                      {"model.layers.2.self_attn.q_proj", "", -1, Projection::none},
                                                      "lora_magnitude_vector",
                                                      0});
                    }),
            ErrorCode::LO_NO_FORM);
}

// ---- bad files

std::optional<ErrorCode> reading_code(const std::string& image, const Model& model) {
  return code_of([&] {
    Adapter adapter;
    adapter.form = AdapterForm::gguf;
    adapter.weights = gguf::parse_gguf(image);
    adapter.weights = with_rows_in_order(adapter, model);
    ReadOptions options;
    options.verb = Verb::convert;
    read(adapter, model, options);
  });
}

TEST(Gguf, RefusesBadFiles) {
  using gguf::raw_key, gguf::raw_text, gguf::raw32, gguf::RawTensor;
  const Model model = model_of("qwen3_moe", paths_of(*find_gguf_names("qwen3_moe")));
  const std::string architecture = raw_key("general.architecture", 8, raw_text("qwen3moe")),
                    alpha = raw_key("adapter.lora.alpha", 6, raw32(0x40a00000));
  const auto image = [&](std::vector<RawTensor> tensors, std::vector<std::string> keys = {}) {
    std::uint64_t offset = 0;
    for (RawTensor& tensor : tensors) {
      tensor.offset = offset;
      std::uint64_t elements = 1;
      for (const auto n : tensor.dimensions) elements *= n;
      const std::uint64_t bytes = tensor.type == 8   ? elements / 32 * 34
                                  : tensor.type == 1 ? 2 * elements
                                                     : 4 * elements;
      offset += (bytes + 31) / 32 * 32;
    }
    if (keys.empty()) keys = {architecture, alpha};
    return gguf::gguf_image(keys, tensors, offset);
  };
  const std::string a = "blk.2.attn_q.weight.lora_a", b = "blk.2.attn_q.weight.lora_b",
                    up_a = "blk.2.ffn_up_exps.weight.lora_a", up_b = "blk.2.ffn_up_exps.weight.lora_b";
  EXPECT_EQ(reading_code(image({{a, {14, 3}}}), model), ErrorCode::LO_PAIR);
  EXPECT_EQ(reading_code(image({{a, {14, 3}}, {b, {4, 10}}}), model), ErrorCode::LO_SHAPE);
  EXPECT_EQ(reading_code(image({{a, {14, 3, 2}}, {b, {3, 10}}}), model), ErrorCode::LO_SHAPE);
  EXPECT_EQ(reading_code(image({{a, {32, 3}, 8}, {b, {3, 10}}}), model), ErrorCode::GG_TYPE)
      << "quantised types are unpacked when an adapter is opened, as far as they are read";
  EXPECT_EQ(reading_code(image({{up_a, {24, 3, 11}}, {up_b, {3, 20, 11}}}), model), ErrorCode::LO_EXPERT)
      << "llama.cpp does not check this";
  EXPECT_EQ(reading_code(image({{up_a, {24, 3, 12}}, {up_b, {3, 20, 11}}}), model), ErrorCode::LO_SHAPE);
  EXPECT_EQ(reading_code(image({{a, {14, 3}}, {b, {3, 10}}, {"blk.2.attn_norm.weight", {14}}}), model),
            ErrorCode::LO_SUFFIX);
  EXPECT_EQ(reading_code(image({{a, {14, 3}},
                                {b, {3, 10}},
                                {"blk.2.other.weight.lora_a", {14, 3}},
                                {"blk.2.other.weight.lora_b", {3, 10}}}),
                         model),
            ErrorCode::LO_TARGET);
  EXPECT_EQ(reading_code(
                image({{a, {14, 3}}, {b, {3, 10}}}, {architecture, raw_key("adapter.lora.alpha", 4, raw32(5))}), model),
            ErrorCode::GG_VALUE);
  EXPECT_EQ(
      reading_code(image({{a, {14, 3}}, {b, {3, 10}}}, {raw_key("general.architecture", 8, raw_text("llama")), alpha}),
                   model),
      ErrorCode::MD_FAMILY);
  EXPECT_EQ(
      reading_code(image({{a, {14, 3}}, {b, {3, 10}}}, {raw_key("general.architecture", 8, raw_text("mpt2")), alpha}),
                   model),
      ErrorCode::MD_FAMILY);
  EXPECT_EQ(reading_code(image({{up_a, {24, 3, 12}},
                                {up_b, {3, 20, 12}},
                                {"blk.2.ffn_gate_up_exps.weight.lora_a", {24, 3, 12}},
                                {"blk.2.ffn_gate_up_exps.weight.lora_b", {3, 40, 12}}}),
                         model),
            ErrorCode::LO_AMBIG);
  EXPECT_EQ(reading_code(image({}), model), ErrorCode::LO_NONE);
  EXPECT_EQ(reading_code(image({{a, {14, 3}}, {b, {3, 10}}}), model), std::nullopt) << "a good file";
}

}  // namespace
}  // namespace peft::layout
