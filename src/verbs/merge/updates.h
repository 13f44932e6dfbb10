// From the factors of adapters to updates of planned tensors, and everything else an adapter may carry.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "peft/weights.h"
#include "verbs/merge/adapters.h"
#include "verbs/merge/output.h"

namespace peft::merging {

// The parameter an extra is about: "weight" of "base_layer.weight".
std::string own_suffix(const Extra& extra);

// The base, and where its matrices lie.
struct Base {
  const MergeOptions& options;
  const Model& model;
  const Checkpoint& checkpoint;
  const Weights& weights;

  bool says_tied() const;  // input and output embedding are one parameter, by the config
  bool is_tied() const;    // the output has no tensor of its own
  std::string output_module() const;
  std::string input_module() const;
  // Throws LO_TARGET, LO_QUANT, LO_SHAPE, LO_VOCAB: what is wrong between a factor and the base.
  Weight weight_of(const MergeAdapter& adapter, const Factor& factor) const;
  Weight place_of(const MergeAdapter& adapter, const Extra& extra) const;
  // A head of the adapter's task that the base, a model of another task, has no tensor for: the result gets it.
  bool lacks_head(const MergeAdapter& adapter, const Extra& extra) const;

 private:
  [[noreturn]] void no_target(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const;
  void require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const;
};

// The quantised tensors that an adapter changes, with all that go with them: experts are quantised by the layer.
std::set<OutTensors::Number> touched_codes(const Base& base, const std::vector<MergeAdapter>& adapters,
                                           const std::vector<QuantizedTensor>& quantized);

// Nothing is left that only a config which is gone could explain.
void refuse_unread_codes(const Base& base, const std::vector<QuantizedTensor>& quantized);

// Adds all factors and extras. Returns whether the output embedding had to become a tensor of its own.
bool add_updates(const Base& base, const std::vector<MergeAdapter>& adapters, OutTensors& tensors);

}  // namespace peft::merging
