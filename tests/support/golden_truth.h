// The one true LoRA of golden/consumers, which many programs' files hold.
#pragma once

#include <filesystem>
#include <string>

#include "support/golden.h"
#include "support/judge.h"

namespace peft::testing {

// "mixtral" of consumers/mixtral/fused and of consumers/mlx_lm/mixtral/router.
std::string family_of(const Case& c);

// truth-*.safetensors in the oracle's terms; `scale` and `ranks` are the case's, by role. `layers_prefix`:
// "model.layers.".
OracleFactors read_truth(const Case& c, const std::filesystem::path& root, const std::string& layers_prefix);
// The truth holds every role; a file only some of them. Those it has, it has everywhere.
OracleFactors restricted(const OracleFactors& truth, const OracleFactors& got);
// "model.layers." as the factors of a reading spell it.
std::string layers_prefix_of(const OracleFactors& factors);

InputOptions options_for(const Case& c, const std::filesystem::path& root);

// Adapters of MLX-LM and of Tinker: read, compared with the truth, moved through every layout and back.
void check_mlx(const Case& c, const std::filesystem::path& root);
void check_tinker(const Case& c, const std::filesystem::path& root);

}  // namespace peft::testing
