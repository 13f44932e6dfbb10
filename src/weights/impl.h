// Finds tensors of a checkpoint for Weights::find() and Weights::load(), under the names of transformers 5.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/families/disk_names.h"
#include "peft/weights.h"

namespace peft::weights {

// What the v5 name of a tensor says. Tensors of one expert's projection say expert and projection.
struct TensorName {
  std::string module;     // v5 path; of experts the path of all of them
  std::string parameter;  // "weight", "bias", "gate_up_proj", "weight_scale_inv"
  std::int64_t expert = -1;
  Projection projection = Projection::none;
  bool operator==(const TensorName&) const = default;
};
struct TensorNameHash {
  std::size_t operator()(const TensorName& name) const;
};

class TensorNames {
 public:
  TensorNames(const Model& model, const Checkpoint& checkpoint);

  // The v5 name of a tensor as a checkpoint of any generation spells it.
  TensorName parse(const std::string& name) const;
  // Number of the tensor in Checkpoint::tensors(). Tries the names of the family's other classes too.
  std::optional<std::size_t> find(const TensorName& name) const;
  const TensorName& name(std::size_t tensor) const { return names_[tensor]; }
  const model::DiskNames& disk_names() const { return disk_; }

 private:
  bool locate(const std::string& module, const std::string& parameter, TensorName& name) const;
  void add(const TensorName& name, std::size_t tensor) { by_name_.try_emplace(name, tensor); }

  const Model& model_;
  model::DiskNames disk_;
  std::vector<TensorName> names_;
  std::unordered_map<TensorName, std::size_t, TensorNameHash> by_name_;
};

}  // namespace peft::weights

namespace peft {

struct Weights::Impl {
  Impl(const Model& m, const Checkpoint& c) : model(m), checkpoint(c), names(m, c) {}

  // The experts a module path names, in the spelling of any class of the family; null: none.
  const Experts* experts_at(const std::string& module) const;
  // One expert's projection, from its own tensor or from one that holds all experts.
  std::optional<Weight> expert(const Experts& experts, std::int64_t expert, Projection projection) const;
  // Its bias: a tensor of its own, or a row of "gate_up_proj_bias" [E, out].
  std::optional<Weight> expert_bias(const Experts& experts, std::int64_t expert, Projection projection) const;
  // mxfp4 under the name of the parameter that it is of.
  std::optional<QuantizedTensor> packed(const std::string& module, const std::string& parameter) const;
  // A module's weight of which the checkpoint has only pieces: gate and up of a fused one, or its transpose.
  std::optional<Weight> pieces(const weights::TensorName& name) const;
  // A tensor as a matrix [rows, cols] of the values as they are stored; with its scales where it is quantised.
  std::optional<WeightPart> whole(const weights::TensorName& name, bool first_dimension_alone) const;

  const TensorInfo& tensor(const WeightPart& part) const {
    return checkpoint.files()[part.view.source]->tensors()[part.view.tensor];
  }

  const Model& model;
  const Checkpoint& checkpoint;
  weights::TensorNames names;

 private:
  struct Stack {  // [E, d1, d2]
    WeightPart part;
    std::int64_t experts = 0, rows = 0, cols = 0;
    bool out_in = false;  // known to be [E, out, in]: quantised stacks are
  };
  std::optional<Stack> stack(const std::string& module, const std::string& parameter) const;
  // One expert's projection from a stack [E, d1, d2]: the `which`-th of `parts` projections.
  static std::optional<Weight> cut(Stack stack, std::int64_t expert, std::int64_t which, std::int64_t parts,
                                   bool interleaved, bool in_out);
  std::optional<Weight> from_stack(const Experts& experts, Generation g, std::int64_t expert,
                                   Projection projection) const;
  std::optional<View> grid(const weights::TensorName& name, std::int64_t cols) const;
  std::optional<Scales> block_scales(const weights::TensorName& name, const WeightPart& part) const;
  std::optional<WeightPart> part_of(const weights::TensorName& name) const;
};

}  // namespace peft
