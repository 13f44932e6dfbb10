// The forward pass: who is active, and for mixed batches which adapter each sequence has.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "nn/lora/impl.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

[[noreturn]] void refuse(std::string problem, std::string expected, std::string got, std::string hint = {}) {
  throw Error(ErrorCode::USAGE, {.tensor = "adapter_names",
                                 .problem = std::move(problem),
                                 .expected = std::move(expected),
                                 .got = std::move(got),
                                 .hint = std::move(hint)});
}

// A replaced tensor can be mixed where a hook computes with it: weights of Linear and Embedding modules.
void require_mixable(const PeftModel::Impl& impl, int id) {
  for (const Overlay& overlay : impl.overlays) {
    const Module* owner = impl.base->modules().find(overlay.module);
    const bool hooked =
        overlay.parameter == "weight" && overlay.kind == Overlay::Kind::saved_module &&
        (dynamic_cast<const Linear*>(owner) != nullptr || dynamic_cast<const Embedding*>(owner) != nullptr);
    if (hooked || !overlay.adapters.contains(id)) continue;
    refuse("adapter \"" + impl.entry_of(id).name + "\" replaces " + overlay.module + "." + overlay.parameter +
               ", which cannot be mixed within a batch",
           "adapters that replace weights of Linear and Embedding modules only", impl.entry_of(id).name,
           "run its sequences in a batch of their own");
  }
}

// Overlays are put aside for the time of a mixed batch: the hooks see to them row by row.
class Mixed {
 public:
  Mixed(PeftModel::Impl& impl, const RunOptions& options, const Tensor& ids) : impl_(impl) {
    context.training = options.training;
    if (!impl.control->enabled && impl.any_merged()) unmerge_adapters(impl);  // merged while disabled: the base answers
    if (options.adapter_names.empty()) return;
    if (options.training) refuse("mixed batches are for inference", "training = false", "training = true");
    if (impl.any_merged()) refuse("an adapter is merged into the weights", "none", "merged", "unmerge_adapter() first");
    if (static_cast<std::int64_t>(options.adapter_names.size()) != ids.size(0)) {
      refuse("one name for each sequence is needed", std::to_string(ids.size(0)),
             std::to_string(options.adapter_names.size()));
    }
    for (const std::string& name : options.adapter_names) {
      const int id = name == base_name ? -1 : impl.entry(name).id;
      if (id >= 0) require_mixable(impl, id);
      context.adapter_of_sequence.push_back(id);
    }
    mixed_ = impl.control->enabled;
    if (!mixed_)
      context.adapter_of_sequence.clear();
    else
      impl_.select_overlays({});
  }
  ~Mixed() {
    if (mixed_) impl_.select_overlays(impl_.control->active);
  }
  Mixed(const Mixed&) = delete;

  Context context;

 private:
  const PeftModel::Impl& impl_;
  bool mixed_ = false;
};

}  // namespace

ForwardOutput PeftModel::forward(const ForwardInput& input, const RunOptions& options) const {
  const Mixed mixed(live(), options, input.ids);
  return impl_->base->forward(input, mixed.context);
}

Tensor PeftModel::logits(const Tensor& ids, const Tensor& mask, const RunOptions& options) const {
  const at::NoGradGuard no_grad;
  ForwardInput input;
  input.ids = ids, input.mask = mask;
  return forward(input, options).logits;
}

std::vector<std::vector<std::int64_t>> PeftModel::generate(const Tensor& ids, const Tensor& mask,
                                                           const GenerateOptions& options,
                                                           const RunOptions& run) const {
  const Mixed mixed(live(), run, ids);
  return nn::generate(*impl_->base, ids, mask, options, mixed.context);
}

}  // namespace peft::nn
