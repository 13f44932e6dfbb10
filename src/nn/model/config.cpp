#include "nn/model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "model/config_json/config_section.h"
#include "model/families/families.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

using model::Biases;
using model::ConfigSection;
using model::Windows;

constexpr std::pair<std::string_view, Activation> kActivations[] = {
    {"silu", Activation::silu},          {"swish", Activation::silu},
    {"gelu", Activation::gelu},          {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_new", Activation::gelu_tanh}, {"relu", Activation::relu}};

constexpr std::string_view kRopeTypes[] = {"default", "linear", "llama3", "yarn"};

Activation read_activation(const ConfigSection& config, const char* key) {
  const std::string name = config.text(key, "silu");
  std::string known;
  for (const auto& [spelling, activation] : kActivations) {
    if (spelling == name) return activation;
    known += (known.empty() ? "" : ", ") + std::string(spelling);
  }
  config.fail(key, {.problem = "an activation that is not implemented", .expected = known, .got = name});
}

// `source`: the rotary parameters; `config`: what they stand in.
void read_scaling(const ConfigSection& config, const ConfigSection& source, RopeConfig& rope) {
  if (rope.type != "default") rope.factor = source.needed_number("factor");
  if (rope.type == "llama3") {
    rope.low_freq_factor = source.needed_number("low_freq_factor");
    rope.high_freq_factor = source.needed_number("high_freq_factor");
  }
  if (rope.type == "llama3" || rope.type == "yarn") {
    rope.original_max_position = source.has("original_max_position_embeddings")
                                     ? source.needed_number("original_max_position_embeddings")
                                     : config.needed_number("max_position_embeddings");
  }
  if (source.has("attention_factor")) rope.attention_factor = source.needed_number("attention_factor");
  rope.beta_fast = source.number("beta_fast", 32), rope.beta_slow = source.number("beta_slow", 1);
  rope.mscale = source.number("mscale", 0), rope.mscale_all_dim = source.number("mscale_all_dim", 0);
  rope.truncate = source.flag("truncate", true);
  const bool positive = rope.factor > 0 && rope.theta > 1 && rope.partial > 0 && rope.partial <= 1 &&
                        rope.original_max_position >= 0 && rope.high_freq_factor > rope.low_freq_factor;
  if (!positive)
    source.fail(
        "rope_type",
        {.problem = "rotary parameters that make no sense", .expected = "positive numbers", .got = source.show()});
}

RopeConfig read_rope(const ConfigSection& config, const model::RuntimeRow& family, std::int64_t head_dim) {
  const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const ConfigSection source = config.has(key) ? config.section(key) : config.without_keys();
  RopeConfig rope;
  rope.type = source.text("rope_type", source.text("type", "default"));
  if (rope.type == "mrope")
    rope.type = "default";  // what transformers makes of it: sections beside the default frequencies
  if (std::find(std::begin(kRopeTypes), std::end(kRopeTypes), rope.type) == std::end(kRopeTypes)) {
    config.fail(key, {.problem = "a kind of rotary embedding that is not implemented",
                      .expected = "default, linear, llama3 or yarn",
                      .got = rope.type});
  }
  rope.theta = source.number("rope_theta", config.number("rope_theta", family.default_theta));
  rope.partial =
      source.number("partial_rotary_factor", config.number("partial_rotary_factor", family.default_partial_rotary));
  read_scaling(config, source, rope);
  const auto rotary = static_cast<std::int64_t>(static_cast<double>(head_dim) * rope.partial);
  if (rotary < 2 || rotary % 2 != 0) {
    config.fail("head_dim", {.problem = "the rotary part of a head must be an even number",
                             .expected = "an even number",
                             .got = std::to_string(rotary)});
  }
  return rope;
}

// Layer kinds that layer_types may name.
constexpr std::string_view kFull = "full_attention", kSliding = "sliding_attention", kLinear = "linear_attention";

std::int64_t divided(const ConfigSection& config, const char* key, std::int64_t value, std::int64_t by,
                     const char* by_key) {
  if (value % by != 0) {
    config.fail(key, {.problem = "must be a multiple of " + std::string(by_key),
                      .expected = "a multiple of " + std::to_string(by),
                      .got = std::to_string(value)});
  }
  return value / by;
}

void read_attention(const ConfigSection& config, ModelConfig& model) {
  const model::RuntimeRow& family = *model.family;
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
  const bool by_default = family.biases == Biases::by_config_true_default;
  const bool by_config =
      (by_default || family.biases == Biases::by_config) && config.flag("attention_bias", by_default);
  const bool qkv_by_config = family.biases == Biases::qkv_by_config && config.flag("qkv_bias", true);
  model.qkv_bias = by_config || qkv_by_config || family.biases == Biases::qkv;
  model.o_bias = by_config;
  model.attention_dropout = config.number("attention_dropout", 0);
}

// The default of layer_types, for a config without it.
std::string_view default_kind(const ConfigSection& config, const model::RuntimeRow& family, std::int64_t layer) {
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

std::int64_t window_of(const ConfigSection& config, const model::RuntimeRow& family, std::string_view kind) {
  const bool used = family.windows == Windows::all ||
                    (family.windows == Windows::all_if_used && config.flag("use_sliding_window", false)) ||
                    kind == kSliding;
  if (!used || (kind != kSliding && !config.has("sliding_window"))) return 0;
  return config.size("sliding_window");
}

// Decided by the rules of the family's row. Throws when the config's keys do not decide.
bool has_experts(const model::ConfigFacts& facts, const model::RuntimeRow& family, std::int64_t layer) {
  if (!family.experts) return false;
  const auto found = facts.has_experts(*model::load_table(), {family.experts->row}, layer);
  if (found) return *found;
  ConfigSection(facts).fail("num_hidden_layers", {.problem = "which layers have experts cannot be told",
                                                  .expected = family.experts->row->moe_layers.front(),
                                                  .got = "layer " + std::to_string(layer)});
}

void read_layers(const model::ConfigFacts& facts, const ConfigSection& config, ModelConfig& model) {
  const std::int64_t count = config.size("num_hidden_layers", model::kMaxLayers);
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && static_cast<std::int64_t>(types.size()) != count) {
    config.fail("layer_types", {.problem = "must name every layer",
                                .expected = std::to_string(count) + " entries",
                                .got = std::to_string(types.size())});
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string_view kind = types.empty() ? default_kind(config, *model.family, i) : std::string_view(types[i]);
    const bool known = kind == kFull || (kind == kLinear && model.family->linear_attention) ||
                       (kind == kSliding && model.family->windows >= Windows::layer_types_alternate);
    if (!known)
      config.fail("layer_types",
                  {.problem = "a kind of layer that this family does not have", .got = std::string(kind)});
    model.layers.push_back({.linear_attention = kind == kLinear,
                            .moe = has_experts(facts, *model.family, i),
                            .window = kind == kLinear ? 0 : window_of(config, *model.family, kind)});
  }
}

void read_moe(const ConfigSection& config, ModelConfig& model) {
  const model::RuntimeExperts& parts = *model.family->experts;
  const auto& keys = parts.row->keys;
  MoeConfig& moe = model.moe;
  moe.experts = config.size_of({"num_local_experts", "num_experts"}, model::kMaxExperts);
  moe.top_k = config.size("num_experts_per_tok");
  if (moe.top_k > moe.experts) {
    config.fail("num_experts_per_tok", {.problem = "more than there are experts",
                                        .expected = "at most " + std::to_string(moe.experts),
                                        .got = std::to_string(moe.top_k)});
  }
  moe.intermediate = config.size(keys.at("I").c_str());
  if (const auto shared = keys.find("S"); shared != keys.end())
    moe.shared_intermediate = config.size(shared->second.c_str());
  if (parts.renormalise_by_config) moe.renormalise = config.flag("norm_topk_prob", false);
  moe.swiglu_alpha = config.number("swiglu_alpha", 1.702);
  moe.swiglu_limit = config.number("swiglu_limit", 7);
  moe.aux_loss_coef = config.number("router_aux_loss_coef", 0.001);
  moe.jitter = config.number("router_jitter_noise", 0);
}

void read_linear_attention(const ConfigSection& config, ModelConfig& model) {
  LinearAttentionConfig& linear = model.linear;
  linear.key_heads = config.size("linear_num_key_heads");
  linear.value_heads = config.size("linear_num_value_heads");
  linear.key_dim = config.size("linear_key_head_dim");
  linear.value_dim = config.size("linear_value_head_dim");
  linear.kernel = config.size("linear_conv_kernel_dim");
  divided(config, "linear_num_value_heads", linear.value_heads, linear.key_heads, "linear_num_key_heads");
}

VisionConfig read_vision(const ConfigSection& config) {
  return {.depth = config.size("depth", model::kMaxLayers),
          .hidden = config.size("hidden_size"),
          .intermediate = config.size("intermediate_size"),
          .channels = config.size("in_channels"),
          .out_hidden = config.size("out_hidden_size"),
          .positions = config.size("num_position_embeddings"),
          .patch = config.size("patch_size"),
          .temporal_patch = config.size("temporal_patch_size"),
          .merge = config.size("spatial_merge_size")};
}

void read_top(const ConfigSection& top, ModelConfig& model) {
  const std::vector<std::string> architectures = top.texts("architectures");
  if (!architectures.empty()) model.architecture = architectures.front();
  if (!model.architecture.empty() && !model.architecture.ends_with("ForCausalLM") &&
      !model.architecture.ends_with("ForConditionalGeneration")) {
    top.fail(
        "architectures",
        {.problem = "not a language model with a head", .expected = "a ...ForCausalLM", .got = model.architecture});
  }
  for (const char* key : {"image_token_id", "video_token_id"}) {
    if (top.has(key)) model.media_tokens.push_back(top.whole(key, -1));
  }
}

// theta^(2i / dim), in fp32 as transformers computes it.
std::vector<float> powers(double theta, std::int64_t dim) {
  std::vector<float> result;
  for (std::int64_t i = 0; i < dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(dim);
    result.push_back(std::pow(static_cast<float>(theta), exponent));
  }
  return result;
}

void stretch_llama3(const RopeConfig& rope, std::vector<float>& inverse) {
  const double low = rope.original_max_position / rope.low_freq_factor;
  const double high = rope.original_max_position / rope.high_freq_factor;
  for (float& f : inverse) {
    const double wavelength = 2 * std::numbers::pi / static_cast<double>(f);
    if (wavelength < high) continue;
    if (wavelength > low) {
      f = static_cast<float>(static_cast<double>(f) / rope.factor);
      continue;
    }
    const double smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    f = static_cast<float>((1 - smooth) * static_cast<double>(f) / rope.factor + smooth * static_cast<double>(f));
  }
}

double magnitude(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1; }

double yarn_scaling(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return magnitude(rope.factor, rope.mscale) / magnitude(rope.factor, rope.mscale_all_dim);
  }
  return magnitude(rope.factor, 1);
}

// The dimension that turns `rotations` times over the original context.
double correction(const RopeConfig& rope, double rotations, std::int64_t dim) {
  return static_cast<double>(dim) * std::log(rope.original_max_position / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

void stretch_yarn(const RopeConfig& rope, std::int64_t dim, std::vector<float>& inverse) {
  double low = correction(rope, rope.beta_fast, dim), high = correction(rope, rope.beta_slow, dim);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double f = static_cast<double>(inverse[i]);
    inverse[i] = static_cast<float>(f / rope.factor * ramp + f * (1 - ramp));
  }
}

}  // namespace

ModelConfig read_config(const model::ConfigFacts& facts) {
  const ConfigSection top(facts);
  ModelConfig model;
  model.file = facts.file();
  model.model_type = facts.model_type();
  model.family = model::find_runtime(model.model_type);
  if (model.family == nullptr) {
    std::string known;
    for (const std::string& type : model::runtime_types()) known += (known.empty() ? "" : ", ") + type;
    at(facts.file(), "model_type")
        .fail(ErrorCode::MD_FAMILY,
              {.problem = "models of this type do not run here", .expected = known, .got = model.model_type});
  }
  read_top(top, model);
  const ConfigSection config = model.family->section.empty() ? top : top.section(model.family->section.c_str());
  model.vocab = config.size("vocab_size");
  model.hidden = config.size("hidden_size");
  model.eps = config.number("rms_norm_eps", model.family->default_eps);
  model.initializer_range = config.number("initializer_range", 0.02);
  model.activation = read_activation(config, "hidden_act");
  model.tied = facts.tie_word_embeddings().value_or(false);
  model.dtype = config.text("dtype", config.text("torch_dtype", top.text("dtype", top.text("torch_dtype", ""))));
  read_attention(config, model);
  read_layers(facts, config, model);
  bool any_dense = false;
  for (const LayerConfig& layer : model.layers) any_dense |= !layer.moe;
  if (any_dense) model.intermediate = config.size("intermediate_size");
  if (model.family->mlp_bias) model.mlp_bias = config.flag("mlp_bias", false);
  if (model.family->experts) read_moe(config, model);
  if (model.family->linear_attention) read_linear_attention(config, model);
  model.rope = read_rope(config, *model.family, model.head_dim);
  if (!model.family->section.empty()) model.vision = read_vision(top.section("vision_config"));
  return model;
}

Frequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim) {
  const auto dim = static_cast<std::int64_t>(static_cast<double>(head_dim) * rope.partial);
  Frequencies frequencies;
  for (const float power : powers(rope.theta, dim)) frequencies.inverse.push_back(1.0F / power);
  if (rope.type == "linear") {
    for (float& f : frequencies.inverse) f = static_cast<float>(static_cast<double>(f) / rope.factor);
  } else if (rope.type == "llama3") {
    stretch_llama3(rope, frequencies.inverse);
  } else if (rope.type == "yarn") {
    stretch_yarn(rope, dim, frequencies.inverse);
    frequencies.scaling = yarn_scaling(rope);
  }
  return frequencies;
}

}  // namespace peft::nn
