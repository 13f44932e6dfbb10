#include <fmt/format.h>

#include <algorithm>

#include "layout/encoder.h"
#include "layout/keys.h"

namespace peft::layout {

void Encoder::per_expert(const Experts& experts, Group group) {
  const ExpertsForm& form = *experts.form;
  if (form.per_expert.empty()) {
    no_form(group.front().site.module,
            fmt::format("{} has no per-expert modules in any transformers version: its experts are one parameter",
                        model_.model_type),
            "peft-fused is the form PEFT and vLLM read");
  }
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.projection == Projection::none) {
      no_form(describe(factor.site), "a parameter that is not gate, up or down has no per-expert form",
              "keep the fused layout");
    }
    const std::string name = experts.per_expert_module(factor.site.expert, factor.site.projection);
    add_matrix(std::string(kPrefix) + name + ".lora_A.weight", factor.a);
    add_matrix(std::string(kPrefix) + name + ".lora_B.weight", factor.b);
    add_target(name, false, factor.rank, factor.scale);
  }
  step(fmt::format("layer of experts as one pair per expert and projection (bit-exact)"));
}

}  // namespace peft::layout
