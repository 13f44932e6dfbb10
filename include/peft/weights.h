// Where each matrix of a model lies in a checkpoint: in a file of per-expert modules (transformers 4, and most of the
// hub), of fused parameters (transformers 5), or quantised. One mechanism for merging, extracting and loading.
// Headers only; no tensor is read. Names are those of transformers 5 wherever a Site or a parameter is meant.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/adapter.h"
#include "peft/plan.h"

namespace peft {

// A piece of a weight matrix W [out, in]: the rows from `row` on, inside one tensor of the checkpoint.
struct WeightPart {
  std::string name;  // the tensor as the checkpoint calls it
  View view;         // [rows, in]; source: which of Checkpoint::files(); strides count the values as they are stored
  std::int64_t row = 0;          // first row of W that lies here
  std::optional<Scales> scales;  // of a quantised tensor, whose codes the view counts
};

// A whole weight. Nearly always one part; a module that a checkpoint splits (gate and up of a fused one) has more.
struct Weight {
  std::int64_t out = 0, in = 0;
  std::vector<WeightPart> parts;

  static Weight of(WeightPart part) { return {part.view.rows, part.view.cols, {std::move(part)}}; }
};

// A tensor that a checkpoint holds quantised, as it is without that.
struct QuantizedTensor {
  std::string name;  // "….experts.gate_up_proj" of "….gate_up_proj_blocks"; of block FP8 the tensor's own
  std::vector<std::int64_t> shape;  // of gpt_oss [E, in, out], while its codes lie [E, out, in]
  std::vector<Block> blocks;        // its values, in the matrix of all but the last dimension by the last
  WeightPart codes;                 // all codes as they lie: [rows, columns]
  bool turned = false;              // each matrix is the transpose of its codes
};

// One parameter that a model wants to be filled: "model.layers.0.mlp.experts.gate_up_proj", [E, 2I, H].
struct WantedParameter {
  std::string name;
  std::vector<std::int64_t> shape;
  Dtype dtype = Dtype::f32;  // what it is converted to
};

// How a checkpoint fills a model. View::source of the blocks counts Checkpoint::files().
struct Loading {
  std::vector<PlannedTensor> tensors;   // in the order wanted, without the missing ones
  std::vector<std::string> missing;     // wanted, and not in the checkpoint (or in part only)
  std::vector<std::string> unexpected;  // in the checkpoint, and wanted by nothing
  std::vector<std::string> ignored;     // the same, where the real class ignores them: mtp.*, model.visual.*
};

class Weights {
 public:
  // Keeps references: model and checkpoint must outlive it.
  Weights(const Model& model, const Checkpoint& checkpoint);
  ~Weights();
  Weights(Weights&&) noexcept;

  // The matrix of a module, of one expert's projection, or of a parameter that is no matrix per expert.
  // nullopt: the checkpoint has none. Where gate and up lie fused, each is found by itself. An expert's projection
  // with the parameter "bias" is that bias, a row.
  std::optional<Weight> find(const Site& site) const;
  // A parameter by its module (v5 path) and name: ("model.layers.0.self_attn.q_proj", "bias"), as a matrix
  // [all but the last dimension, last dimension]; a vector is one row.
  std::optional<Weight> find(std::string_view module, std::string_view parameter) const;
  // All that is quantised in a form that is read, in the order of Checkpoint::tensors().
  std::vector<QuantizedTensor> quantized() const;
  // What find() would accept that is spelled nearly so, for messages: "model.layers.0.self_attn.q_proj".
  std::vector<std::string> near(const std::string& module) const;

  // How the checkpoint fills the parameters of a model that runs: v5 names and shapes. Throws LO_SHAPE where a tensor
  // is there and has another shape.
  Loading load(std::span<const WantedParameter> wanted) const;

  // Whether config.json says that the embeddings are tied, while the output embedding in the file has other values than
  // the input embedding. transformers 5 uses both then and warns; transformers 4 drops the output embedding. We use
  // both.
  bool has_own_output() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// What users are told when has_own_output(). `config` is the path of config.json.
std::string own_output_text(const std::string& config);

}  // namespace peft
