// The merged model: its tensors, what each one holds, and the files they go to.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "peft/plan.h"
#include "peft/verbs.h"
#include "peft/weights.h"

namespace peft::merging {

// A tensor of the merged model.
struct OutTensor {
  PlannedTensor planned;
  std::uint32_t file = 0;   // of the checkpoint: where its bytes come from
  std::uint32_t index = 0;  // of the file's tensors
  std::int64_t matrix_rows = 0,
               matrix_cols = 0;  // of one stored matrix, where the tensor holds them transposed; else 0
  Dtype computed = Dtype::bf16;  // what its values are cast to before anything is added
  bool dequantized = false;
  bool is_copy = true;  // nothing is computed or replaced in it
  std::vector<MergedPart> parts;
};

// All of them, made from the base's tensors; updates and replacements are added.
class OutTensors {
 public:
  using Number = std::pair<std::uint32_t, std::uint32_t>;  // of a base tensor: file, and tensor of the file
  // `keep`: quantised tensors that stay as they are.
  OutTensors(const Checkpoint& checkpoint, const std::vector<QuantizedTensor>& quantized, const std::set<Number>& keep,
             const MergeOptions& options);

  // Of tensors that are planned as copies; their `computed` says what they are cast to once they change.
  OutTensors(std::vector<OutTensor> tensors, const MergeOptions& options);

  // The matrix of an output tensor that holds a part of a base weight.
  struct Target {
    std::size_t tensor = 0;
    View view;  // in elements of the planned tensor
  };
  Target target_of(const WeightPart& part) const;
  // A further tensor with the values of another one: a tied output that becomes its own.
  std::size_t add_copy(std::size_t of, std::string name);
  // A tensor of an adapter that the base lacks. It goes into the base's last file, in its own dtype.
  std::size_t add_new(const TensorInfo& tensor, std::uint32_t source, std::uint32_t number, std::string name);

  void add(std::size_t tensor, Update update, MergedPart part);
  // Puts a matrix of the same size in the place of a whole tensor, or of one of its rows. `keep`: updates still apply.
  void replace(std::size_t tensor, const View& source, bool keep, MergedPart part);
  void replace_row(std::size_t tensor, std::int64_t row, const View& source);
  // Records that a part of an adapter went into the tensor.
  void note(std::size_t tensor, MergedPart part);

  std::vector<OutTensor>& all() { return tensors_; }
  const std::vector<OutTensor>& all() const { return tensors_; }

 private:
  void cast(OutTensor& tensor, Dtype stored) const;

  const MergeOptions& options_;
  std::vector<OutTensor> tensors_;
  std::map<Number, std::size_t> by_number_;
};

// What config.json and the metadata of the files say.
struct FileFacts {
  bool untied = false;
  bool own_output = false;                  // the base's config says tied, but its file has two embeddings
  std::vector<std::string> kept_quantized;  // names of codes that stay; empty: nothing is quantised any more
  std::vector<std::string> dequantized;     // modules and parameters that no longer are
  std::string record;                       // of merged adapters, for the metadata
};
// Moves the tensors into the plan's files and adds texts and copies. Parts get their place in the plan.
void write_files(const Checkpoint& base, const MergeOptions& options, std::vector<OutTensor>& tensors,
                 const FileFacts& facts, MergePlan& result);

}  // namespace peft::merging
