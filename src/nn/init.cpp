// Weights of a model without a checkpoint: what the real classes' initialisation gives, from one seed.
#include <ATen/CPUGeneratorImpl.h>

#include "nn/impl.h"

namespace peft::nn {
namespace {

bool is_norm(const Module& module) { return module.class_name.find("Norm") != std::string::npos; }

void init_slot(const CausalLM::Impl& model, const Module& module, const Slot& slot, at::Generator& generator) {
  Tensor& tensor = *slot.tensor;
  const bool zero_centred =
      model.config.family->norms == Norms::zero_centred && module.class_name.ends_with("MoeRMSNorm");
  if (slot.name == "bias" || slot.name.ends_with("_bias")) {
    if (slot.name == "dt_bias")
      tensor.fill_(1);
    else
      tensor.zero_();
  } else if (is_norm(module)) {
    tensor.fill_(zero_centred ? 0 : 1);
  } else if (slot.name == "A_log") {
    tensor.uniform_(0.01, 16, generator).log_();
  } else {
    tensor.normal_(0, model.config.initializer_range, generator);
  }
}

}  // namespace

void init_weights(CausalLM::Impl& model, std::uint64_t seed) {
  at::NoGradGuard no_gradients;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const auto& module : model.modules.all()) {
    for (const Slot& slot : module->slots) {
      const bool again = model.tied && slot.tensor == &model.lm_head->weight;
      if (!again) init_slot(model, *module, slot, generator);
    }
  }
}

}  // namespace peft::nn
