// Makes pieces of tensors that a merge changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>

#include "execute/merge_gains.h"
#include "execute/merge_rows.h"
#include "peft/execute.h"

namespace peft::execution {

// One thread's. What it needs of a tensor stays until the next tensor.
class Merger {
 public:
  explicit Merger(MergeStores& stores) : stores_(stores) {}

  // Writes the rectangle `area` of the tensor to `out`, row after row without gaps. Throws NUM_NONFINITE or
  // NUM_OVERFLOW for a result that is no number.
  void render(const Plan& plan, const PlannedTensor& tensor, bool wide, const Rectangle& area, std::byte* out);

  const MergeError& error() const { return error_; }

 private:
  void open(const Plan& plan, const PlannedTensor& tensor, bool wide);
  void render_stretch(const Rectangle& area, std::byte* out);
  bool is_covered(const Rectangle& area) const;
  void copy_base(const MergeTarget& target);
  template <class T>
  void render_place(std::size_t place, const MergeTarget& target);
  template <class T>
  bool merge_strip_of(Tiles<T>& tiles, const Gains& gains, const MergeTarget& target, const StripPlace& place);
  template <class T>
  std::shared_ptr<const Gains> gains_of(std::size_t place, const StepRange& rows);
  template <class T>
  Tiles<T>& tiles_of(std::size_t place);

  MergeStores& stores_;
  const PlannedTensor* opened_ = nullptr;
  std::unique_ptr<MergedTensor> tensor_;
  // The places used last keep their packed factors.
  std::list<std::pair<std::size_t, Tiles<float>>> tiles32_;
  std::list<std::pair<std::size_t, Tiles<double>>> tiles64_;
  LineBuffer<std::byte> base_;
  LineBuffer<double> weights_;
  StripMerger strips_;
  Scratch scratch_;
  MergeError error_;
};

}  // namespace peft::execution
