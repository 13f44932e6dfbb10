// The base of a merge: which of its weights a factor updates, and what does not fit or cannot be read.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "peft/weights.h"
#include "verbs/merge/adapters.h"
#include "verbs/merge/output.h"

namespace peft::merging {

// The name of the parameter that an extra replaces or adds to: "weight" of "base_layer.weight".
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
  // The weight that a factor updates, as [out, in]; the parameter that an extra is about. Throw LO_TARGET, LO_QUANT,
  // LO_SHAPE, LO_VOCAB where the base has none that fits.
  Weight weight_of(const MergeAdapter& adapter, const Factor& factor) const;
  Weight weight_of(const MergeAdapter& adapter, const Extra& extra) const;
  // Whether the extra is a head of the adapter's task that the base has no tensor for. The merged model gets it.
  bool lacks_head(const MergeAdapter& adapter, const Extra& extra) const;

 private:
  std::optional<Weight> find(const Site& site) const;
  [[noreturn]] void no_target(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const;
  void require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const;
};

// The quantised tensors that change. Experts are quantised by the layer, so all of a layer change together.
std::set<OutTensors::Number> touched_codes(const Base& base, const std::vector<MergeAdapter>& adapters,
                                           const std::vector<QuantizedTensor>& quantized);

// Throws LO_QUANT for codes that stay in the output although its config no longer says how to read them.
void refuse_unread_codes(const Base& base, const std::vector<QuantizedTensor>& quantized);

}  // namespace peft::merging
