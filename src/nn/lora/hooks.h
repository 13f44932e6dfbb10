// What is put into the modules: an adapter of the model's interface, which asks the switch who is active.
#pragma once

#include <memory>
#include <vector>

#include "nn/lora/overlay.h"
#include "nn/lora/site.h"
#include "nn/modules.h"

namespace peft::nn {

struct LinearHook : LinearAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;       // null: no LoRA here
  const Overlay* saved = nullptr;   // a copy of the module saved by modules_to_save
  const TokenRows* rows = nullptr;  // trainable tokens of an output embedding
  Tensor forward(const Linear& base, const Tensor& x, const Context& context) override;
  // The base's output with what the adapter replaces in it: LoRA is added to that.
  Tensor replace(int adapter, const Linear& base, const Tensor& y, const Tensor& x, const Context& context) const;
  Tensor apply(int adapter, const Tensor& y, const Tensor& x, const Context& context) const;
};

struct EmbeddingHook : EmbeddingAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;
  const Overlay* saved = nullptr;
  const TokenRows* rows = nullptr;
  Tensor forward(const Embedding& base, const Tensor& ids, const Context& context) override;
  Tensor apply(int adapter, const Tensor& y, const Tensor& ids) const;
};

struct ExpertHook : ExpertAdapter {
  std::shared_ptr<const Switch> control;
  const Site* site = nullptr;       // of the matrix
  const Site* bias_site = nullptr;  // of its bias
  Tensor apply(const Tensor& base_out, const Tensor& x, const ExpertGroups& groups, const Context& context) override;
  Tensor apply_one(int adapter, const Tensor& y, const Tensor& x, const RowGroups& groups, const Tensor& expert,
                   bool training) const;
  // The site's factors, if they are all that the active adapters add here and are plain; else null.
  const SiteFactors* only_factors(bool training) const;
};

}  // namespace peft::nn
