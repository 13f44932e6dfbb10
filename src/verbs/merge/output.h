// The merged model: its tensors, what each one holds, and the files they go to.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "peft/merge.h"
#include "peft/plan.h"
#include "peft/weights.h"
#include "verbs/merge/updates.h"

namespace peft::merging {

struct OutTensor {
  PlannedTensor planned;
  std::uint32_t file = 0;                         // of the checkpoint: where its bytes come from
  std::int64_t matrix_rows = 0, matrix_cols = 0;  // of one stored matrix, where the tensor holds them turned; else 0
  Dtype computed = Dtype::bf16;                   // what its values are cast to before anything is added
  bool dequantized = false;
  bool is_copy = true;  // nothing is computed or replaced in it
  std::vector<MergedPart> parts;
};

class OutTensors {
 public:
  // `keep`: numbers (file, tensor) of quantised tensors that stay as they are.
  using Number = std::pair<std::uint32_t, std::uint32_t>;
  OutTensors(const Checkpoint& checkpoint, const std::vector<QuantizedTensor>& quantized, const std::set<Number>& keep,
             const MergeOptions& options);

  struct Place {
    std::size_t tensor = 0;
    View view;  // in elements of the planned tensor
  };
  Place place(const WeightPart& part) const;
  // A further tensor with the values of another one: a tied output that becomes its own.
  std::size_t add_copy(std::size_t of, std::string name);
  // A tensor of an adapter that the base lacks. It goes into the base's last file, in its own dtype.
  std::size_t add_new(const TensorInfo& tensor, std::uint32_t source, std::uint32_t number, std::string name);

  void add(std::size_t tensor, Update update, MergedPart part);
  // Puts a matrix of the same size in the place of a whole tensor, or of one of its rows. `keep`: updates still apply.
  void replace(std::size_t tensor, const View& source, bool keep, MergedPart part);
  void replace_row(std::size_t tensor, std::int64_t row, const View& source);
  void note(std::size_t tensor, MergedPart part);

  std::vector<OutTensor>& all() { return tensors_; }
  const std::vector<OutTensor>& all() const { return tensors_; }

 private:
  void cast(OutTensor& tensor, Dtype stored) const;

  const MergeOptions& options_;
  std::vector<OutTensor> tensors_;
  std::map<Number, std::size_t> by_number_;
};

struct FileFacts {
  bool untied = false;
  bool own_output = false;                  // the base's config says tied, and its file has two embeddings
  std::vector<std::string> kept_quantized;  // names of codes that stay; empty: nothing is quantised any more
  std::vector<std::string> dequantized;     // modules and parameters that no longer are
  std::string record;                       // of merged adapters, for the metadata
};
// Moves the tensors into the plan's files and adds texts and copies. Parts get their place in the plan.
void write_files(const Base& base, std::vector<OutTensor>& tensors, const FileFacts& facts, MergePlan& result);

struct ConfigChange {
  bool untied = false;
  bool own_output = false;               // it said tied, and the file has two embeddings
  std::vector<std::string> dequantized;  // modules that are quantised no longer
  std::vector<std::string> kept;         // names of codes that are; empty: none is
  bool any_dequantized = false;
  std::optional<Dtype> dtype;  // of all weights, where they were cast
};
// nullopt: every word stays true, so the file is copied. Throws LO_QUANT where no config can say what is quantised.
std::optional<std::string> changed_config(const std::string& path, const ConfigChange& change,
                                          std::vector<std::string>& warnings);

// weight_map and totals anew; other metadata of the base's index (a path, or "") stay.
std::string index_text(const std::string& base_index, const std::vector<PlannedFile>& files);

}  // namespace peft::merging
