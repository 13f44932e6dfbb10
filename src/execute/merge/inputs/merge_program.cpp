#include "execute/merge/inputs/merge_program.h"

#include <algorithm>

namespace peft::execution {
namespace {

// Mode `best` (and `fast`): all norms are those of the unmerged weight.
MergeProgram best_program(const Merge& merge, const plan::TargetMatrix& matrix) {
  MergeProgram program;
  for (std::size_t n = 0; n < matrix.updates.size(); ++n) {
    if (!merge.updates[matrix.updates[n]].magnitude) continue;
    program.steps.push_back({Step::Kind::measure, n, program.row_scales.size(), AddRule::fused});
    program.row_scales.push_back(n);
  }
  std::size_t row_scale = 0;
  for (std::size_t n = 0; n < matrix.updates.size(); ++n) {
    const bool dora = merge.updates[matrix.updates[n]].magnitude.has_value();
    program.steps.push_back({dora ? Step::Kind::scale : Step::Kind::add, n, dora ? row_scale++ : 0, AddRule::fused});
  }
  return program;
}

// PEFT merges one adapter after the other. Before a DoRA adapter it unmerges the adapters before it, the last one
// first, measures the norm, and merges them again; DoRA adapters get newly measured norms.
class PeftProgram {
 public:
  PeftProgram(const Merge& merge, const plan::TargetMatrix& matrix)
      : merge_(merge), matrix_(matrix), row_scale_of_(matrix.updates.size()) {}

  MergeProgram run() {
    for (std::size_t n = 0; n < matrix_.updates.size(); ++n) {
      if (!is_dora(n)) {
        put_in(n);
        continue;
      }
      for (std::size_t m = n; m-- > 0;) take_out(m);
      for (std::size_t m = 0; m <= n; ++m) {
        if (is_dora(m)) measure(m);
      }
      for (std::size_t m = 0; m <= n; ++m) put_in(m);
    }
    return std::move(program_);
  }

 private:
  const Update& update(std::size_t n) const { return merge_.updates[matrix_.updates[n]]; }
  bool is_dora(std::size_t n) const { return update(n).magnitude.has_value(); }

  void measure(std::size_t n) {
    row_scale_of_[n] = program_.row_scales.size();
    program_.steps.push_back({Step::Kind::measure, n, row_scale_of_[n], AddRule::plain});
    program_.row_scales.push_back(n);
  }
  void put_in(std::size_t n) {
    const bool is_bias = update(n).b.rows == 0;  // added in fp32 in both modes
    const bool rounded = (merge_.mode == MergeMode::peft_safe && !is_bias) || update(n).delta_is_rounded;
    if (is_dora(n)) {
      program_.steps.push_back({Step::Kind::scale, n, row_scale_of_[n], AddRule::plain});
    } else {
      program_.steps.push_back({Step::Kind::add, n, 0, rounded ? AddRule::delta_rounded : AddRule::plain});
    }
  }
  void take_out(std::size_t n) {
    program_.steps.push_back(
        {is_dora(n) ? Step::Kind::take_out : Step::Kind::add, n, row_scale_of_[n], AddRule::taken_out});
  }

  const Merge& merge_;
  const plan::TargetMatrix& matrix_;
  std::vector<std::size_t> row_scale_of_;
  MergeProgram program_;
};

}  // namespace

std::vector<std::size_t> MergeProgram::passes() const {
  std::vector<std::size_t> ends;
  bool measured = false;  // since the end of the last pass
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const bool measures = steps[s].kind == Step::Kind::measure;
    if (measured && !measures) ends.push_back(s), measured = false;
    measured |= measures;
  }
  ends.push_back(steps.size());
  return ends;
}

MergeProgram make_program(const Merge& merge, const plan::TargetMatrix& matrix) {
  const bool uses_peft_rounding = merge.mode == MergeMode::peft || merge.mode == MergeMode::peft_safe;
  return uses_peft_rounding ? PeftProgram(merge, matrix).run() : best_program(merge, matrix);
}

}  // namespace peft::execution
