// A site: one target of the model, with the factors that each adapter has on it. DoRA, first values, and the tensors
// that an adapter replaces.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nn/kernels/grouped.h"
#include "nn/model/network.h"
#include "peft/config.h"

namespace peft::nn {

// Which adapters are active; all hooks of a model share it. Adapters are numbers here; PeftModel knows their names.
struct Switch {
  bool enabled = true;
  std::vector<int> active;  // in order of activation
};

enum class SiteKind : std::uint8_t {
  linear,  // nn.Linear, or a 2-D parameter that is used like one: a router's weight
  embedding,
  experts,    // [E, out, in] or [E, in, out]
  bias_rows,  // [E, out]: a bias of experts, row e of which is added to expert e's output
};

// The factors of one adapter at one site.
struct SiteFactors {
  FactorStack stack;
  at::Tensor bias;       // lora_bias: [out]
  at::Tensor magnitude;  // DoRA: [out]; experts: [experts, out], in the order of the parameter's rows
  double dropout = 0;
  // Where gate and up have pairs of their own: the number of gate's components; the rest is up's. -1: they share all.
  std::int64_t split = -1;

  struct NormCache;  // DoRA's row norms, while nothing they depend on has changed
  mutable std::shared_ptr<NormCache> norms;
};

struct Site {
  SiteKind kind = SiteKind::linear;
  std::string module;         // "model.layers.0.mlp.experts"
  std::string parameter;      // "gate_up_proj"; "weight" of a dense module
  bool by_parameter = false;  // a target of target_parameters
  const Module* owner = nullptr;
  at::Tensor* weight = nullptr;               // the base's tensor
  at::Tensor* base_bias = nullptr;            // null: the module has none
  bool in_out = false;                        // of experts: stored [E, in, out]
  std::pair<std::size_t, std::size_t> order;  // of the module in the model, of the parameter in the module

  std::map<int, SiteFactors> adapters;
  std::vector<int> merged;             // in order
  at::Tensor unmerged, unmerged_bias;  // copies from before the first merge, if they are kept

  std::string name() const { return module + "." + parameter; }
  std::string target() const { return by_parameter ? name() : module; }  // as rank_pattern sees it
  const SiteFactors* find(int adapter) const {
    const auto at = adapters.find(adapter);
    return at == adapters.end() ? nullptr : &at->second;
  }
  std::int64_t num_experts() const;
  bool base_is_in_out() const;  // the base holds the transpose of B A
  std::int64_t in() const;
  std::int64_t out() const;
  std::string class_name() const;  // PEFT's: "lora.Linear", "lora.ParamWrapper"
};

// As in PEFT's file: lora_A [experts * rank, in] and lora_B [out, rank * experts]. Works for gradients as well.
at::Tensor a_in_file_form(const at::Tensor& a);
at::Tensor b_in_file_form(const at::Tensor& b);

// scale * B A in the shape of the base parameter: the product in the factors' dtype, then times the scale.
at::Tensor delta_weight(const Site& site, const SiteFactors& factors);

// DoRA: row i of W + scale * B A is scaled by magnitude(i) over its own norm.
//
// Norms of the rows of W + scale * B A, without gradient, in the factors' dtype: [out], for experts [experts, out].
// `hit`: the experts whose rows are needed; the others may be stale. The norms are cached until W, A or B change.
at::Tensor row_norms(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit = nullptr);

// magnitude / norms.
at::Tensor gains(const Site& site, const SiteFactors& factors, const std::vector<std::int64_t>* hit = nullptr);

// ---- The first values of new factors: PEFT's init_lora_weights, for what needs no data.

// Refuses names that are not implemented (CF_UNSUP): those that need data (eva, corda, lora_ga), loftq, mica.
void require_known_init(const AdapterConfig& config);
// Whether the start is subtracted from the base's weight: PiSSA and OLoRA.
bool starts_from_weight(const std::string& init);

// Gives a and b their first values; `factors.stack` has their shapes. Values are drawn on the CPU, so that they are the
// same on every device. For PiSSA and OLoRA the site's weight becomes W - scale * B A, rounded once.
void initialise(Site& site, SiteFactors& factors, const std::string& init, at::Generator& generator);

// ---- What an adapter replaces beside LoRA: modules_to_save, biases, saved embeddings, rows of trainable tokens.

// One tensor of the base that adapters replace. While such an adapter is active, the module holds its version.
struct Overlay {
  enum class Kind : std::uint8_t {
    saved_module,  // a copy beside the original: counted twice, as PEFT does
    base_value,    // the base's own tensor, in another version: biases, saved embeddings
  };
  Kind kind = Kind::saved_module;
  std::string module, parameter;    // "lm_head", "weight"
  std::vector<at::Tensor*> places;  // where the base holds it: more than one where embeddings are tied
  at::Tensor original;
  std::map<int, at::Tensor> adapters;
  std::map<int, std::string> suffix;  // of its key on disk, where that is not the parameter's name

  // Puts a version into the model: that of the first adapter of `active` that has one, else the original.
  void select(const std::vector<int>& active) const {
    const at::Tensor* chosen = &original;
    for (const int adapter : active) {
      const auto at = adapters.find(adapter);
      if (at == adapters.end()) continue;
      chosen = &at->second;
      break;
    }
    for (at::Tensor* place : places) *place = *chosen;
  }
};

// Rows of an embedding that are replaced and trained: trainable_token_indices.
struct TokenRows {
  struct Rows {
    at::Tensor ids;                    // [n] int64
    std::vector<std::int64_t> tokens;  // the same, to look at
    at::Tensor delta;        // [n, dim]: the new rows themselves, whatever PEFT calls them; fp32, or the base's fp64
    bool follows = false;    // a tied output embedding: the tensors are those of the input embedding
    bool given = false;      // by the adapter's file
    at::Tensor before = {};  // the base's rows, while these are merged
  };
  std::string module;
  at::Tensor* weight = nullptr;  // the base's tensor
  std::map<int, Rows> adapters;
  std::vector<int> merged;  // in order

  const Rows* find(int adapter) const {
    const auto at = adapters.find(adapter);
    return at == adapters.end() ? nullptr : &at->second;
  }
};

}  // namespace peft::nn
