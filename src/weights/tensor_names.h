// The tensors of a checkpoint under the names of transformers 5.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/disk_names.h"
#include "peft/adapter.h"
#include "peft/safetensors.h"

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
