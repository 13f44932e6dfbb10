#include <algorithm>

#include "config/peft_rules.h"
#include "layout/decode.h"

namespace peft::layout {
namespace {

// Input and output embeddings are saved whole when they were resized or targeted (save_embedding_layers).
bool is_embedding(const Model& model, std::string_view module) {
  for (const auto g : {Generation::v4, Generation::v5}) {
    if (const auto& tree = model.tree(g)) {
      if (module == tree->input_embedding || module == tree->output_embedding) return true;
    }
  }
  const std::string_view leaf = module.substr(module.rfind('.') == std::string_view::npos ? 0 : module.rfind('.') + 1);
  return leaf == "embed_tokens" || leaf == "lm_head";
}

// A part of PEFT's wrapper that says nothing new: what the module was, or what the file holds under its own name too.
bool is_repeated(Context& context, const Key& key, const Unwrapped& module, const std::string& name) {
  auto& anomalies = context.reading.anomalies;
  if (module.part == WrapperPart::original) {
    anomalies.push_back(name + " is what the module was before training (original_module): it is not used");
    return true;
  }
  const std::string own = module.module + "." + std::string(key.suffix);
  const TensorFile& file = *context.adapter.weights;
  if (module.part == WrapperPart::none || !(file.find(std::string(kPrefix) + own) || file.find(own))) return false;
  anomalies.push_back(name + " is not used: PEFT takes " + own);
  return true;
}

}  // namespace

void decode_single(Context& context, const Single& single) {
  const Key& key = single.key;
  const std::string name(context.tensor(single.tensor).name);
  const Unwrapped unwrapped = unwrap(key.module);
  const std::string& module = unwrapped.module;
  if (is_repeated(context, key, unwrapped, name)) return;
  std::optional<ExtraKind> kind;
  if (key.kind == KeyKind::token_delta)
    kind = ExtraKind::token_delta;
  else if (unwrapped.part == WrapperPart::saved ||
           config::is_saved_by(config::saved_entries(context.adapter.config), module))
    kind = ExtraKind::saved_module;
  else if (key.suffix.ends_with("bias") && context.adapter.config.bias != "none")
    kind = ExtraKind::base_bias;
  else if (key.suffix.ends_with("weight") && is_embedding(context.model, module))
    kind = ExtraKind::saved_module;
  if (!kind) {
    const bool base = key.suffix == "weight" || key.suffix == "bias";
    context.unused.push_back({name, ErrorCode::LO_UNUSED,
                              base ? "neither LoRA nor in modules_to_save: a weight of the base model?" : "not LoRA"});
    return;
  }
  Extra extra{*kind, {}, std::string(key.suffix), single.tensor};
  if (const auto located = context.model.locate(module); located && located->expert >= 0) {
    const Experts& experts = *located->experts;
    extra.site = {experts.v5_module.empty() ? experts.v4_module : experts.v5_module, "", located->expert,
                  located->projection};
  } else {
    extra.site.module = context.model.rename(module, Generation::v4, Generation::v5);
  }
  context.reading.factors.extras.push_back(std::move(extra));
}

}  // namespace peft::layout
