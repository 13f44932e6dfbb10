// A base in the form of transformers: a folder with config.json and safetensors files.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "verbs/merge/base.h"
#include "verbs/merge/output.h"

namespace peft::merging {

class CheckpointBase final : public Base {
 public:
  CheckpointBase(const MergeOptions& options, const Model& model, const Checkpoint& checkpoint, const Weights& weights)
      : Base(options, model), checkpoint_(checkpoint), weights_(weights) {}

  const Checkpoint& checkpoint() const { return checkpoint_; }
  const Weights& weights() const { return weights_; }
  bool says_tied() const override;
  bool is_tied() const override;
  std::string output_module() const override;
  std::string input_module() const override;
  std::string output_tensor() const override { return output_module() + ".weight"; }
  Weight weight_of(const MergeAdapter& adapter, const Factor& factor) const override;
  Weight weight_of(const MergeAdapter& adapter, const Extra& extra) const override;
  std::optional<Weight> find(const std::string& module) const override { return weights_.find(module, "weight"); }
  bool lacks_head(const MergeAdapter& adapter, const Extra& extra) const override;

 private:
  std::optional<Weight> stored(const Site& site) const;
  [[noreturn]] void missing(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const;
  void require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const;

  const Checkpoint& checkpoint_;
  const Weights& weights_;
};

// The quantised tensors that change. Experts are quantised by the layer, so all of a layer change together.
std::set<OutTensors::Number> touched_codes(const CheckpointBase& base, const std::vector<MergeAdapter>& adapters,
                                           const std::vector<QuantizedTensor>& quantized);

// Throws LO_QUANT for codes that stay in the output although its config no longer says how to read them.
void refuse_unread_codes(const CheckpointBase& base, const std::vector<QuantizedTensor>& quantized);

}  // namespace peft::merging
