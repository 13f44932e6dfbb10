#include "model/names.h"

#include "model/path.h"

namespace peft::model {

bool is_embedding_name(std::string_view module) {
  const std::string_view name = leaf(module);
  if (name == "embed_out") return false;  // gpt_neox calls its output so
  return name == "wte" || name == "wpe" || name == "shared" || name.starts_with("embed") || name.ends_with("embed") ||
         name.ends_with("embeddings") || name.ends_with("embedding");
}

bool is_token_embedding_name(std::string_view module) {
  const std::string_view name = leaf(module);
  const bool text = module.find("visual") == std::string_view::npos &&
                    module.find("vision") == std::string_view::npos && module.find("audio") == std::string_view::npos;
  return text && is_embedding_name(module) && name != "wpe" && name.find("pos") == std::string_view::npos &&
         name.find("type") == std::string_view::npos;
}

bool is_norm_name(std::string_view module) {
  const std::string_view name = leaf(module);
  return name.find("norm") != std::string_view::npos || name.starts_with("ln_") || name == "ln";
}

bool is_output_name(std::string_view module) {
  const std::string_view name = leaf(module);
  return name == "lm_head" || name == "embed_out";
}

}  // namespace peft::model
