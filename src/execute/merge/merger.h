// Renders parts of the tensors that a merge changes, and measures what a merge changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "execute/merge/dora_row_scales.h"
#include "execute/merge/strip_merger.h"
#include "peft/execute.h"

namespace peft::execution {

// Not for several threads at once. Keeps what it has prepared for a tensor until it is given another one.
class Merger {
 public:
  explicit Merger(MergeStores& stores) : stores_(stores) {}

  // Writes the rectangle `area` of the tensor to `out`, row after row without gaps. Throws NUM_NONFINITE or
  // NUM_OVERFLOW if a result is not finite.
  void render(const Plan& plan, const PlannedTensor& tensor, bool wide, const Rectangle& area, std::byte* out);

  const MergeError& error() const { return error_; }

 private:
  void open(const Plan& plan, const PlannedTensor& tensor, bool wide);
  void render_stretch(const Rectangle& area, std::byte* out);
  bool is_covered(const Rectangle& area) const;
  void copy_base(const AreaRows& target);
  template <class T>
  void merge_matrix(std::size_t matrix, const AreaRows& target);
  template <class T>
  bool merge_strip_of(UpdateProducts<T>& products, const DoraRowScales& row_scales, const AreaRows& target,
                      const StripArea& strip);
  template <class T>
  std::shared_ptr<const DoraRowScales> row_scales_of(std::size_t matrix, const plan::StepRange& rows);
  template <class T>
  UpdateProducts<T>& products_of(std::size_t matrix);

  MergeStores& stores_;
  const PlannedTensor* opened_ = nullptr;
  std::unique_ptr<MergedTensor> tensor_;
  // The target matrices used last keep their packed factors.
  std::list<std::pair<std::size_t, UpdateProducts<float>>> products32_;
  std::list<std::pair<std::size_t, UpdateProducts<double>>> products64_;
  LineBuffer<std::byte> base_;
  LineBuffer<double> weights_;
  StripMerger strips_;
  Scratch scratch_;
  MergeError error_;
};

// Norms of the matrices and updates of some planned files, in the order of the plan, for reports. Reads every matrix
// that changes. The sums do not depend on the number of threads.
std::vector<MergedMatrix> merged_norms(const Plan& plan, std::span<const std::size_t> files, int threads);

}  // namespace peft::execution
