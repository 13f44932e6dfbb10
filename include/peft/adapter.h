// An adapter on disk, and what it means: LoRA factors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "peft/config.h"
#include "peft/model.h"
#include "peft/safetensors.h"

namespace peft {

// Whose files they are. The names of tensors and the config follow from it.
enum class AdapterForm : std::uint8_t {
  peft,  // a folder with adapter_config.json and adapter_model.safetensors
  gguf,  // a LoRA file for llama.cpp; `weights` is a gguf::GgufFile, `config` is made of its metadata
  mlx,   // a folder of MLX-LM: adapters.safetensors; `config` is made of its adapter_config.json
};

// Headers and config only; no tensor is read.
struct Adapter {
  AdapterForm form = AdapterForm::peft;
  std::string folder;
  std::string name;             // "default", or the subfolder of a further adapter
  AdapterConfig config;         // of other forms: what PEFT's config would say of r, lora_alpha and the base model
  std::optional<double> scale;  // of forms whose config has one scale for all pairs
  std::string
      wrapper_layout;  // what automodel_peft_config.json says: "peft-0.19.1", "peft-0.18"; "" where it is not there
  std::shared_ptr<const TensorFile> weights;
  std::vector<std::string> side_files;  // README.md, tokenizer, chat template: names inside folder, to be copied
  std::string root;                     // the folder that was named: `folder`, or the one above a further adapter
  bool follow_symlinks = false;
};

struct AdapterOptions {
  std::string adapter_name;  // "" = the one in the folder itself
  OpenOptions open;
};
Adapter open(const std::string& folder, const AdapterOptions& options = {});
// The names of the side files, and the real path of each. Throws IX_LINK for a link that leaves the folder that the
// user named, unless follow_symlinks; IO_OPEN for a link that leads nowhere; IO_KIND for a pipe, a device or a folder.
std::vector<std::pair<std::string, std::string>> side_file_paths(const Adapter& adapter);
// All adapters of a folder: "default" for the folder itself, then subfolders that are adapters, sorted.
std::vector<std::string> adapter_names(const std::string& folder);
// Returns an existing path as it is. Looks for other names (org/model) in the local Hugging Face cache (HF_HUB_CACHE,
// HF_HOME). Never uses the network.
std::string resolve_path(const std::string& path_or_repo);

// The place of a factor in the model, independent of layout and generation.
struct Site {
  std::string module;  // v5 path of a dense module ("….self_attn.q_proj") or of the experts ("….mlp.experts")
  std::string
      parameter;  // set for LoRA on an nn.Parameter that is not per expert: "weight" of a router, "gate_up_proj_bias"
  std::int64_t expert = -1;                  // -1: not an expert
  Projection projection = Projection::none;  // of an expert
  auto operator<=>(const Site&) const = default;
};
std::string describe(const Site& site);  // "model.layers.0.mlp.experts.7.gate"
// The order in which factors are listed: by module as people count (layer 10 after 9), then by parameter, expert and
// projection.
bool site_less(const Site& x, const Site& y);

enum class FactorKind : std::uint8_t { linear, embedding };

// One weight matrix's update: delta W [out, in] = scale * B * A. For an embedding, of W^T: [dim, vocabulary].
struct Factor {
  Site site;
  FactorKind kind = FactorKind::linear;
  std::int64_t out = 0, in = 0, rank = 0;
  double scale = 1;
  View a;  // [rank, in]
  View b;  // [out, rank]
};

// The numbers of a view, row after row: rows * cols of them. Exact for every float dtype; throws ST_DTYPE for others.
std::vector<double> to_matrix(const TensorFile& file, const View& view);
// delta W [out, in] = scale * B * A, row after row, summed in fp64 over the rank in order.
std::vector<double> to_delta(const TensorFile& file, const Factor& factor);

// A tensor that is carried along whole under its module's name.
enum class ExtraKind : std::uint8_t {
  magnitude,     // DoRA: lora_magnitude_vector
  lora_bias,     // lora_B.bias
  saved_module,  // modules_to_save, save_embedding_layers: the module's own weight or bias
  token_delta,   // token_adapter.trainable_tokens_delta
  base_bias,     // bias="all" / "lora_only"
};
struct Extra {
  ExtraKind kind;
  Site site;           // module, or the expert's projection
  std::string suffix;  // what follows the module in the key: "lora_magnitude_vector", "weight"
  std::uint32_t tensor = 0;
};

// How many experts a layer has. A fused tensor shows it also where some experts have no factor.
struct ExpertCount {
  std::string module;  // v5 path of the experts
  std::int64_t count = 0;
};

struct Factors {
  std::vector<Factor> factors;  // in natural order of their modules (layer 10 after 9), then by expert and projection
  std::vector<Extra> extras;
  std::vector<ExpertCount> expert_counts;
  std::vector<std::string> warnings;
};

}  // namespace peft
