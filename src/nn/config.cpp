#include "nn/config.h"

#include <algorithm>
#include <filesystem>

#include "nn/config_reader.h"

namespace peft::nn {
namespace {

// Layer kinds that layer_types may name.
constexpr std::string_view kFull = "full_attention", kSliding = "sliding_attention", kLinear = "linear_attention";

std::int64_t divided(const Reader& config, const char* key, std::int64_t value, std::int64_t by, const char* by_key) {
  if (value % by != 0) {
    config.fail(key, "must be a multiple of " + std::string(by_key), "a multiple of " + std::to_string(by),
                std::to_string(value));
  }
  return value / by;
}

void read_attention(const Reader& config, ModelConfig& model) {
  const FamilyParts& family = *model.family;
  model.heads = config.size("num_attention_heads");
  model.kv_heads = config.size_or("num_key_value_heads", model.heads);
  divided(config, "num_attention_heads", model.heads, model.kv_heads, "num_key_value_heads");
  if (config.has("head_dim")) {
    model.head_dim = config.size("head_dim");
  } else {
    model.head_dim = family.default_head_dim != 0
                         ? family.default_head_dim
                         : divided(config, "hidden_size", model.hidden, model.heads, "num_attention_heads");
  }
  // gpt_oss, the family with sinks, has biases unless its config says otherwise.
  const bool by_config = family.biases == Biases::by_config && config.flag("attention_bias", family.sinks);
  const bool qkv_by_config = family.biases == Biases::qkv_by_config && config.flag("qkv_bias", true);
  model.qkv_bias = by_config || qkv_by_config || family.biases == Biases::qkv;
  model.o_bias = by_config;
  model.attention_dropout = config.number("attention_dropout", 0);
}

// What layer_types is where a config does not have it.
std::string_view default_kind(const Reader& config, const FamilyParts& family, std::int64_t layer) {
  const bool used = config.flag("use_sliding_window", false);
  switch (family.windows) {
    case Windows::layer_types_alternate:
      return layer % 2 == 0 ? kSliding : kFull;
    case Windows::layer_types_alternate_if_used:
      return used && layer % 2 == 0 && layer < config.whole("max_window_layers", 28) ? kSliding : kFull;
    case Windows::layer_types_from_max:
      return used && config.has("sliding_window") && layer >= config.whole("max_window_layers", 28) ? kSliding : kFull;
    case Windows::none:
    case Windows::all:
    case Windows::all_if_used:
      break;
  }
  if (!family.linear_attention) return kFull;
  const std::int64_t interval = config.size_or("full_attention_interval", 4);
  return (layer + 1) % interval != 0 ? kLinear : kFull;
}

std::int64_t window_of(const Reader& config, const FamilyParts& family, std::string_view kind) {
  const bool used = family.windows == Windows::all ||
                    (family.windows == Windows::all_if_used && config.flag("use_sliding_window", false)) ||
                    kind == kSliding;
  if (!used || (kind != kSliding && !config.has("sliding_window"))) return 0;
  return config.size("sliding_window");
}

bool has_experts(const Reader& config, const FamilyParts& family, std::int64_t layer) {
  if (family.moe == nullptr) return false;
  if (!family.moe->dense_layers) return true;
  const std::int64_t step = config.size_or("decoder_sparse_step", 1);
  const std::vector<std::int64_t> dense = config.list("mlp_only_layers");
  return (layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
}

void read_layers(const Reader& config, ModelConfig& model) {
  const std::int64_t count = config.size("num_hidden_layers", kMaxLayers);
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && static_cast<std::int64_t>(types.size()) != count) {
    config.fail("layer_types", "must name every layer", std::to_string(count) + " entries",
                std::to_string(types.size()));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string_view kind = types.empty() ? default_kind(config, *model.family, i) : std::string_view(types[i]);
    const bool known = kind == kFull || (kind == kLinear && model.family->linear_attention) ||
                       (kind == kSliding && model.family->windows >= Windows::layer_types_alternate);
    if (!known) config.fail("layer_types", "a kind of layer that this family does not have", "", std::string(kind));
    model.layers.push_back({.linear_attention = kind == kLinear,
                            .moe = has_experts(config, *model.family, i),
                            .window = kind == kLinear ? 0 : window_of(config, *model.family, kind)});
  }
}

void read_moe(const Reader& config, ModelConfig& model) {
  const MoeParts& parts = *model.family->moe;
  MoeConfig& moe = model.moe;
  moe.experts = config.size_of({"num_local_experts", "num_experts"}, kMaxExperts);
  moe.top_k = config.size("num_experts_per_tok");
  if (moe.top_k > moe.experts) {
    config.fail("num_experts_per_tok", "more than there are experts", "at most " + std::to_string(moe.experts),
                std::to_string(moe.top_k));
  }
  moe.intermediate = config.size(std::string(parts.intermediate_key).c_str());
  if (parts.shared_expert) moe.shared_intermediate = config.size("shared_expert_intermediate_size");
  if (parts.renormalise == Renormalise::by_config) moe.renormalise = config.flag("norm_topk_prob", false);
  moe.swiglu_alpha = config.number("swiglu_alpha", 1.702);
  moe.swiglu_limit = config.number("swiglu_limit", 7);
  moe.aux_loss_coef = config.number("router_aux_loss_coef", 0.001);
  moe.jitter = config.number("router_jitter_noise", 0);
}

void read_linear_attention(const Reader& config, ModelConfig& model) {
  LinearAttentionConfig& linear = model.linear;
  linear.key_heads = config.size("linear_num_key_heads");
  linear.value_heads = config.size("linear_num_value_heads");
  linear.key_dim = config.size("linear_key_head_dim");
  linear.value_dim = config.size("linear_value_head_dim");
  linear.kernel = config.size("linear_conv_kernel_dim");
  divided(config, "linear_num_value_heads", linear.value_heads, linear.key_heads, "linear_num_key_heads");
}

VisionConfig read_vision(const Reader& config) {
  return {.depth = config.size("depth", kMaxLayers),
          .hidden = config.size("hidden_size"),
          .intermediate = config.size("intermediate_size"),
          .channels = config.size("in_channels"),
          .out_hidden = config.size("out_hidden_size"),
          .positions = config.size("num_position_embeddings"),
          .patch = config.size("patch_size"),
          .temporal_patch = config.size("temporal_patch_size"),
          .merge = config.size("spatial_merge_size")};
}

void read_top(const Reader& top, ModelConfig& model) {
  const std::vector<std::string> architectures = top.texts("architectures");
  if (!architectures.empty()) model.architecture = architectures.front();
  if (!model.architecture.empty() && !model.architecture.ends_with("ForCausalLM") &&
      !model.architecture.ends_with("ForConditionalGeneration")) {
    top.fail("architectures", "not a language model with a head", "a ...ForCausalLM", model.architecture);
  }
  for (const char* key : {"image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"}) {
    const bool placeholder = std::string_view(key).starts_with("image") || std::string_view(key).starts_with("video");
    if (placeholder && top.has(key)) model.media_tokens.push_back(top.whole(key, -1));
  }
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& file) {
  const Reader top = Reader::parse(text, file);
  ModelConfig model;
  model.file = file, model.text = text;
  const std::string type = model.model_type = top.text("model_type", "");
  model.family = find_family_parts(type);
  if (model.family == nullptr) {
    std::string known;
    for (const FamilyParts& f : family_parts()) known += (known.empty() ? "" : ", ") + std::string(f.model_type);
    throw Error(ErrorCode::MD_FAMILY, {.file = file,
                                       .tensor = "model_type",
                                       .problem = "models of this type do not run here",
                                       .expected = known,
                                       .got = type});
  }
  read_top(top, model);
  const Reader config = model.family->section.empty() ? top : top.section(std::string(model.family->section).c_str());
  model.vocab = config.size("vocab_size");
  model.hidden = config.size("hidden_size");
  model.eps = config.number("rms_norm_eps", model.family->default_eps);
  model.initializer_range = config.number("initializer_range", 0.02);
  model.activation = config.activation("hidden_act");
  model.tied = top.flag("tie_word_embeddings", config.flag("tie_word_embeddings", false));
  model.dtype = config.text(
      "dtype", config.text("torch_dtype", top.text("dtype", top.text("torch_dtype", "").c_str()).c_str()).c_str());
  read_attention(config, model);
  read_layers(config, model);
  bool any_dense = false;
  for (const LayerConfig& layer : model.layers) any_dense |= !layer.moe;
  if (any_dense) model.intermediate = config.size("intermediate_size");
  if (model.family->mlp_bias) model.mlp_bias = config.flag("mlp_bias", false);
  if (model.family->moe != nullptr) read_moe(config, model);
  if (model.family->linear_attention) read_linear_attention(config, model);
  model.rope = config.rope(model.family->default_theta, model.family->default_partial_rotary, model.head_dim);
  if (!model.family->section.empty()) model.vision = read_vision(top.section("vision_config"));
  return model;
}

ModelConfig read_config(const std::string& path) {
  const std::string file =
      std::filesystem::is_directory(path) ? (std::filesystem::path(path) / "config.json").string() : path;
  return parse_config(Reader::read(file), file);
}

}  // namespace peft::nn
