// One checkpoint with what is known about its names: matrix by matrix and tensor by tensor, whatever its form.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "low_rank/dense.h"
#include "peft/adapter.h"
#include "peft/model.h"
#include "peft/weights.h"

namespace peft::verbs {

// One checkpoint with what is known about its names.
class ModelWeights {
 public:
  ModelWeights(const Model& model, const std::string& folder, const OpenOptions& options);

  // A tensor that is no matrix LoRA could sit on: a norm, a bias.
  struct Other {
    std::string module, parameter;  // in the spelling of transformers 5
    std::size_t tensor = 0;         // in checkpoint.tensors()
  };
  std::vector<Site> sites;    // in natural order
  std::vector<Other> others;  // sorted
  bool fused = false;         // experts lie stacked

  const TensorInfo& info(const Weight& weight) const;
  // Rows [0, out) and columns [first, first + count) in fp64, dequantised.
  low_rank::Dense read(const Weight& weight, std::int64_t first, std::int64_t count) const;

  Checkpoint checkpoint;
  Weights weights;

 private:
  void add(const Model& model, std::size_t tensor);
};

// Whether a tensor holds scales of another one: its numbers are no weights.
bool is_scale(std::string_view name);

// The same bytes of the same dtype, element by element.
bool same_bytes(const ModelWeights& x, const Weight& of_x, const ModelWeights& y, const Weight& of_y);

}  // namespace peft::verbs
