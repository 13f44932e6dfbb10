#include <algorithm>

#include "layout/decode.h"

namespace peft::layout {
namespace {

// modules_to_save as PEFT wraps modules: the module's name ends with the entry (no dot boundary is asked for).
bool is_saved(const AdapterConfig& config, std::string_view module) {
  if (!config.modules_to_save) return false;
  for (const std::string& entry : *config.modules_to_save) {
    for (std::string_view path = module; !path.empty();) {
      if (!entry.empty() && path.ends_with(entry)) return true;
      const auto dot = path.rfind('.');
      path = dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
    }
  }
  return false;
}

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

}  // namespace

void decode_single(Context& context, const Single& single) {
  const Key& key = single.key;
  const std::string name(context.tensor(single.tensor).name);
  std::optional<ExtraKind> kind;
  if (key.kind == KeyKind::token_delta)
    kind = ExtraKind::token_delta;
  else if (is_saved(context.adapter.config, key.module))
    kind = ExtraKind::saved_module;
  else if (key.suffix.ends_with("bias") && context.adapter.config.bias != "none")
    kind = ExtraKind::base_bias;
  else if (key.suffix.ends_with("weight") && is_embedding(context.model, key.module))
    kind = ExtraKind::saved_module;
  if (!kind) {
    const bool base = key.suffix == "weight" || key.suffix == "bias";
    context.unused.push_back({name, ErrorCode::LO_UNUSED,
                              base ? "neither LoRA nor in modules_to_save: a weight of the base model?" : "not LoRA"});
    return;
  }
  Extra extra{*kind, {}, std::string(key.suffix), single.tensor};
  const std::string module(key.module);
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
