// LoRA on a model that runs, with the names and the behaviour of PEFT's Python API. Needs the library peft::nn.
//
//   auto base = peft::nn::load_model("Qwen3-30B-A3B");
//   auto lora = peft::nn::get_peft_model(base, {.r = 8, .lora_alpha = {32}, .target_modules = peft::nn::all_linear,
//                                               .target_parameters = {{"mlp.experts.gate_up_proj"}}});
//   lora->print_trainable_parameters();
//   lora->save_pretrained("out");
//
// docs/runtime.md lists where it differs from PEFT on purpose.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "peft/config.h"
#include "peft/layout.h"
#include "peft/nn/model.h"

namespace peft::nn {

// PEFT's LoraConfig: the fields are those of AdapterConfig, with PEFT's defaults; further keys by set().
// A value that is not implemented is refused with its name (CF_UNSUP).
using LoraConfig = AdapterConfig;
inline const std::string all_linear = "all-linear";
inline const std::string base_name = "__base__";  // in adapter_names: no adapter

// PiSSA, OLoRA, CorDA and LoRA-GA subtract their start from the base and LoftQ rounds it. The adapter belongs to that
// base.
enum class ChangedBase : std::uint8_t {
  refuse,       // an error that says so
  is_residual,  // the base given is the changed one
  subtract,     // change this base as PEFT does when it loads: W - s B0 A0, computed again (PiSSA, OLoRA)
};

struct AdapterModelOptions {
  std::string adapter_name = "default";
  bool is_trainable = false;  // from_pretrained, load_adapter
  std::uint64_t seed = 0;     // of the initialisation
  ChangedBase changed_base = ChangedBase::refuse;
  ReadOptions read{};  // for files that fit several layouts
};

struct MergeOptions {
  // Both round as PEFT does. false: adds in fp32 and rounds once (Linear). true: rounds the delta first and checks that
  // the result is finite.
  bool safe_merge = false;
  // true: unmerge restores the weights bit for bit. false: it subtracts, as PEFT does, and needs no copies.
  bool keep_base = true;
  std::vector<std::string> adapter_names{};  // empty: the active ones
};

struct SaveOptions {
  std::vector<std::string> selected_adapters{};  // empty: all
  // Default: peft-fused; per expert where an adapter has no fused form (DoRA on experts).
  std::optional<Layout> layout{};
  std::optional<bool> save_embedding_layers{};  // default: PEFT's "auto", without the network
  // PiSSA, OLoRA, CorDA, LoRA-GA: the folder of the adapter as it was before training. The saved adapter then belongs
  // to the unchanged base, at twice the rank.
  std::string path_initial_model_for_weight_conversion{};
  bool overwrite = true;  // as PEFT does, but in one step; other files of the folder are kept
  bool sync = true;
  // Further files of the folder, which appear in the same step: name and content.
  std::vector<std::pair<std::string, std::vector<std::byte>>> more_files{};
};

struct WeightedOptions {
  // linear and cat: the exact sum of the weighted deltas. svd: cut to svd_rank. The others combine factors as PEFT
  // does; with _svd they combine deltas, cut to svd_rank.
  std::string combination_type = "svd";
  std::int64_t svd_rank = 0;                   // 0: the largest rank given
  double density = 1;                          // of ties, dare and magnitude_prune
  std::string majority_sign_method = "total";  // or "frequency"
  std::uint64_t seed = 0;                      // of dare
};

struct RunOptions {
  bool training = false;  // dropout is on
  // One name for each sequence: adapters mixed in one batch, base_name for none. Experts too.
  std::vector<std::string> adapter_names{};
};

// A value that layers, or tensors of one layer, should agree on. PEFT says "irregular" where they do not.
template <class T>
struct Agreed {
  T value{};
  bool irregular = false;
  bool operator==(const T& other) const { return !irregular && value == other; }
};

// What get_layer_status() and get_model_status() of PEFT tell, field by field and in PEFT's order.
struct LayerStatus {
  std::string name, module_type;
  bool enabled = true;
  std::vector<std::string> active_adapters, merged_adapters, available_adapters;
  std::map<std::string, Agreed<bool>> requires_grad;
  std::map<std::string, std::vector<std::string>> devices;  // their types: "cuda", without a number
};
struct ModelStatus {
  std::string base_model_type, adapter_model_type = "LoraModel";
  std::map<std::string, std::string> peft_types;
  std::int64_t trainable_params = 0, total_params = 0, num_adapter_layers = 0;
  bool enabled = true;
  Agreed<std::vector<std::string>> active_adapters, merged_adapters;
  std::vector<std::string> available_adapters;
  std::map<std::string, Agreed<bool>> requires_grad;
  std::map<std::string, std::vector<std::string>> devices;
};

// A tensor of an adapter as it is trained, and its name on disk. in_file_form() turns it, or its gradient, into the
// shape it has in PEFT's file: factors of experts are stacked [experts, rank, ...] here. from_file_form() turns it
// back.
struct AdapterTensor {
  std::string key;  // "base_model.model.….lora_A.weight"
  at::Tensor tensor;
  std::function<at::Tensor(const at::Tensor&)> in_file_form, from_file_form;
};

class PeftModel {
 public:
  struct Impl;

  ~PeftModel();
  PeftModel(const PeftModel&) = delete;

  // An adapter folder in any layout that the core can read. Missing and unexpected tensors are errors with names.
  static std::unique_ptr<PeftModel> from_pretrained(std::shared_ptr<CausalLM> base, const std::string& folder,
                                                    const AdapterModelOptions& options = {});
  // Each saved adapter in its own folder: "default" in `folder` itself, others below it. Complete or not at all.
  void save_pretrained(const std::string& folder, const SaveOptions& options = {}) const;

  // The new adapter is not active, and the gradients of the others stay. It is trained once it is active, or after
  // set_requires_grad; with is_trainable, at once.
  void load_adapter(const std::string& folder, const std::string& name, AdapterModelOptions options = {});
  void add_adapter(const std::string& name, const LoraConfig& config, AdapterModelOptions options = {});
  // Makes the adapter the active one. It gets gradients, unless `inference_mode`; all others lose theirs.
  void set_adapter(const std::string& name, bool inference_mode = false);
  // Several at once: their deltas add up.
  void set_adapter(const std::vector<std::string>& names, bool inference_mode = false);
  void set_adapter(std::initializer_list<std::string> names, bool inference_mode = false) {
    set_adapter(std::vector<std::string>(names), inference_mode);
  }
  // Gradients of these adapters on or off, active or not.
  void set_requires_grad(const std::string& name, bool requires_grad = true);
  void set_requires_grad(const std::vector<std::string>& names, bool requires_grad = true);
  void set_requires_grad(std::initializer_list<std::string> names, bool requires_grad = true) {
    set_requires_grad(std::vector<std::string>(names), requires_grad);
  }
  void delete_adapter(const std::string& name);
  void add_weighted_adapter(const std::vector<std::string>& adapters, const std::vector<double>& weights,
                            const std::string& name, const WeightedOptions& options = {});

  // While the guard lives, adapters are off; merged ones are unmerged first. The guard may outlive the model.
  class DisabledAdapters {
   public:
    explicit DisabledAdapters(PeftModel& model);
    ~DisabledAdapters();
    DisabledAdapters(const DisabledAdapters&) = delete;

   private:
    std::weak_ptr<Impl> model_;
    bool was_enabled_;
  };
  [[nodiscard]] DisabledAdapters disable_adapter() { return DisabledAdapters(*this); }

  void merge_adapter(const MergeOptions& options = {});
  void unmerge_adapter();
  // The base model with the adapters in its weights, or as it was before. Afterwards this object throws USAGE.
  std::shared_ptr<CausalLM> merge_and_unload(const MergeOptions& options = {});
  std::shared_ptr<CausalLM> unload();

  ForwardOutput forward(const ForwardInput& input, const RunOptions& options = {}) const;
  at::Tensor logits(const at::Tensor& ids, const at::Tensor& mask = {}, const RunOptions& options = {}) const;
  std::vector<std::vector<std::int64_t>> generate(const at::Tensor& ids, const at::Tensor& mask,
                                                  const GenerateOptions& options, const RunOptions& run = {}) const;

  std::pair<std::int64_t, std::int64_t> get_nb_trainable_parameters() const;  // trainable, all
  std::string trainable_parameters_line() const;
  void print_trainable_parameters() const;  // on standard output
  void print_trainable_parameters(std::ostream& out) const;
  std::vector<LayerStatus> get_layer_status() const;
  ModelStatus get_model_status() const;

  const std::shared_ptr<CausalLM>& base() const;
  std::vector<std::string> adapter_names() const;
  std::vector<std::string> active_adapters() const;
  const LoraConfig& peft_config(const std::string& name = "default") const;
  const std::vector<std::string>& warnings() const;  // everything worth knowing since this object was made

  // The tensors of an adapter as PEFT's file has them, under their names on disk.
  std::vector<std::pair<std::string, at::Tensor>> state_dict(const std::string& name = "default") const;
  std::vector<AdapterTensor> adapter_tensors(const std::string& name = "default") const;
  // set_peft_model_state_dict: values for the tensors of an adapter that exists, under their names on disk. All of them
  // and nothing else, or LO_MISSING, LO_UNUSED, LO_SHAPE.
  void load_state_dict(const std::vector<std::pair<std::string, at::Tensor>>& state,
                       const std::string& name = "default");
  std::vector<at::Tensor> trainable_parameters() const;  // what an optimiser gets
  // The scaled update of a base parameter, in its shape. For inspection: the forward pass never builds it.
  at::Tensor get_delta_weight(const std::string& parameter, const std::string& name = "default") const;

  explicit PeftModel(std::unique_ptr<Impl> impl);

 private:
  Impl& live() const;  // USAGE once the model is unloaded
  std::shared_ptr<Impl> impl_;
};

std::unique_ptr<PeftModel> get_peft_model(std::shared_ptr<CausalLM> base, const LoraConfig& config,
                                          const AdapterModelOptions& options = {});

}  // namespace peft::nn
