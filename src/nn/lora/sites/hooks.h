// The hooks that PeftModel puts into the modules. They ask the switch which adapters are active.
#pragma once

#include <memory>
#include <vector>

#include "nn/lora/sites/site.h"
#include "nn/model/network.h"

namespace peft::nn {

struct LinearHook : LinearAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;       // null: no LoRA here
  const Overlay* saved = nullptr;   // a copy of the module saved by modules_to_save
  const TokenRows* rows = nullptr;  // trainable tokens of an output embedding
  Tensor forward(const Linear& base, const Tensor& x, const ForwardContext& context) override;
  // The base's output after the adapter's replacements (saved modules, token rows). LoRA is added to the result.
  Tensor replace(int adapter, const Linear& base, const Tensor& y, const Tensor& x,
                 const ForwardContext& context) const;
  Tensor apply(int adapter, const Tensor& y, const Tensor& x, const ForwardContext& context) const;
};

struct EmbeddingHook : EmbeddingAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;
  const Overlay* saved = nullptr;
  const TokenRows* rows = nullptr;
  Tensor forward(const Embedding& base, const Tensor& ids, const ForwardContext& context) override;
  Tensor apply(int adapter, const Tensor& y, const Tensor& ids) const;
};

struct ExpertHook : ExpertAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;       // of the matrix
  const Site* bias_site = nullptr;  // of its bias
  Tensor apply(const Tensor& base_out, const Tensor& x, const ExpertGroups& groups,
               const ForwardContext& context) override;
  Tensor apply_one(int adapter, const Tensor& y, const Tensor& x, const RowGroups& groups, const Tensor& expert,
                   bool training) const;
  // The factors of the one active adapter on this site, where it has no DoRA, dropout or bias to apply; else null.
  const SiteFactors* only_factors(bool training) const;
};

// What one adapter does to the output of its site. All functions return the wider dtype of y and the factors; the
// caller rounds once, after the last adapter.

// y [rows, out] is the output so far for x [rows, in] (of an nn.Linear: with its bias).
at::Tensor apply_linear(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& x,
                        bool training);
// y [rows, dim] is the output so far for ids [rows].
at::Tensor apply_embedding(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& ids);
// Rows by expert; expert [rows] is the expert of each row.
at::Tensor apply_experts(const Site& site, const SiteFactors& factors, const at::Tensor& y, const at::Tensor& x,
                         const RowGroups& groups, const at::Tensor& expert, bool training);
// LoRA on the bias [E, out] of experts: row e of s B A is added to the rows of expert e.
at::Tensor apply_bias_rows(const SiteFactors& factors, const at::Tensor& y, const at::Tensor& expert);

}  // namespace peft::nn
