// A causal language model on libtorch: load it, run it, generate with it. Needs the library peft::nn.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peft/model.h"

namespace peft::nn {

struct LoadOptions {
  std::optional<at::ScalarType> dtype{};  // default: what config.json says, else float32
  std::string device = "cpu";             // "cpu", "cuda", "cuda:1"
  int threads = 0;                        // for loading; 0: all cores
  bool check_finite = true;               // NaN or infinity in a weight: NUM_NONFINITE
};

// How a model without a checkpoint gets its weights.
struct InitOptions {
  std::optional<at::ScalarType> dtype{};
  std::string device = "cpu";  // "meta": shapes only, of any size
  std::uint64_t seed = 0;      // weights N(0, initializer_range), norms one (or zero), biases zero
};

// Keys and values, or states of linear attention, of every layer; grows as tokens come.
struct Cache;
struct DeleteCache {
  void operator()(Cache* cache) const;
};
using CachePtr = std::unique_ptr<Cache, DeleteCache>;

struct ForwardInput {
  at::Tensor ids{};        // [sequences, tokens] int64
  at::Tensor mask{};       // [sequences, cached + tokens], 1 real, 0 padding; undefined: all real
  at::Tensor positions{};  // [sequences, tokens], or [tokens] of all; undefined: 0, 1, ... after what is cached
  Cache* cache = nullptr;
  std::int64_t logits_to_keep = 0;  // only the last n tokens' logits; 0: all
  bool want_aux_loss = false;       // the routers' load balancing loss
  // Called once for each layer with experts: the experts that its tokens chose, [sequences * tokens, k] int64.
  std::function<void(std::int64_t layer, const at::Tensor& chosen)> on_routing{};
  at::Tensor embeds{};  // [sequences, tokens, hidden], in place of ids

  // Training. With labels the output has a loss and no logits: those of all tokens are never in memory at once.
  at::Tensor labels{};      // [sequences, tokens] int64: token t + 1 is what token t should predict; -100: not learnt
  double loss_divisor = 0;  // of the sum over tokens; 0: the number of tokens that are predicted here
  // Keeps the inputs of layers and computes the layers again in the backward pass, with the same experts chosen and
  // the same dropout. Gradients of parameters go to their .grad.
  bool gradient_checkpointing = false;
  // Packing: one sequence of several documents, which do not see each other. Lengths; their sum is the tokens.
  std::vector<std::int64_t> documents{};
};
// Called with every step of a forward pass, under names like "layers.0.attn.q".
using Recorder = std::function<void(const std::string& name, const at::Tensor& value)>;

// How the modules of one forward pass behave. PeftModel fills it in by itself.
struct ForwardContext {
  bool training = false;  // dropout is on
  // Mixed batches: the adapter of each sequence, by the adapter's own number; -1: none. Empty: all use the active ones.
  std::vector<std::int64_t> adapter_of_sequence{};
  const Recorder* recorder = nullptr;
};
struct ForwardOutput {
  at::Tensor logits{};    // [sequences, tokens, vocabulary]
  at::Tensor aux_loss{};  // scalar, not multiplied by its coefficient; undefined unless wanted

  // With labels:
  at::Tensor loss{};                  // scalar: the sum of -log p over the predicted tokens, divided
  std::int64_t predicted_tokens = 0;  // how many
  at::Tensor correct{}, entropy{};    // sums over them: where the likeliest token is right; entropies in nats
};

class CausalLM {
 public:
  ~CausalLM();
  CausalLM(const CausalLM&) = delete;

  ForwardOutput forward(const ForwardInput& input, const ForwardContext& context = {}) const;
  at::Tensor logits(const at::Tensor& ids, const at::Tensor& mask = {}) const;  // without gradients
  CachePtr new_cache() const;

  const std::string& model_type() const;             // of config.json: "qwen3_5_moe"
  const std::string& folder() const;                 // where it came from: base_model_name_or_path
  const std::vector<std::string>& warnings() const;  // of loading
  std::int64_t vocab_size() const;
  double router_aux_loss_coef() const;
  std::int64_t expert_count() const;  // of a layer; 0: the model has no experts
  at::ScalarType dtype() const;
  at::Device device() const;

  const peft::Model& facts() const;  // what describe() says of the folder; made on first use
  ModuleTree tree() const;           // names, classes and shapes: what resolve_targets() takes
  // Full names and tensors in registration order; a tied tensor once, under its first name.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  std::int64_t parameter_count() const;

  struct Impl;  // of the library alone
  explicit CausalLM(std::unique_ptr<Impl> impl);
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// A model folder of either transformers generation. Missing, unexpected and mismatched tensors are errors with names.
std::shared_ptr<CausalLM> load_model(const std::string& folder, const LoadOptions& options = {});
// From a config.json, or a folder that has one.
std::shared_ptr<CausalLM> init_model(const std::string& config, const InitOptions& options = {});

struct GenerateOptions {
  std::int64_t max_new_tokens = 20;
  double temperature = 0;  // 0: greedy
  std::int64_t top_k = 0;  // 0: off
  double top_p = 1;
  std::uint64_t seed = 0;
  std::vector<std::int64_t> eos_token_ids{};   // end of a sequence; empty: none
  std::optional<std::int64_t> pad_token_id{};  // what fills a finished sequence; default: the first end token
  // Called after each step with one token for each sequence (a finished one gives padding). false: stop.
  std::function<bool(const std::vector<std::int64_t>& tokens)> on_tokens{};
  std::function<void(const at::Tensor& logits)> on_logits{};  // [sequences, vocabulary] of each step
};
// The new tokens of each sequence, [sequences][steps]. Positions do not count padding.
std::vector<std::vector<std::int64_t>> generate(const CausalLM& model, const at::Tensor& ids, const at::Tensor& mask,
                                                const GenerateOptions& options = {},
                                                const ForwardContext& context = {});

// Fills in eos_token_ids, pad_token_id and sampling from the folder's generation_config.json (else config.json).
GenerateOptions generation_defaults(const std::string& folder);

}  // namespace peft::nn
