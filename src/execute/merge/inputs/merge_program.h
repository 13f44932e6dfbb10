// The steps that turn the weights of one target matrix into merged weights. This is where the merge modes differ.
#pragma once

#include <cstdint>
#include <vector>

#include "execute/kernels/tile_math.h"
#include "plan/update_targets.h"

namespace peft::execution {

struct Step {
  enum class Kind : std::uint8_t {
    add,       // adds scale * d to W by `rule`
    scale,     // DoRA: W = row_scale * (W + scale * d), rounded as the mode demands
    take_out,  // the inverse: W = W / row_scale - scale * d
    measure,   // row_scale = magnitude / norm(W + scale * d)
  };
  Kind kind = Kind::add;
  std::size_t update = 0;     // index in TargetMatrix::updates
  std::size_t row_scale = 0;  // index in MergeProgram::row_scales
  AddRule rule = AddRule::fused;
};

struct MergeProgram {
  std::vector<Step> steps;
  std::vector<std::size_t> row_scales;  // for each row scale, the update whose magnitude it uses

  // Where the passes over the matrix end, as indexes of steps: a step that needs a row scale runs in a later pass than
  // the step that measures it. The last end is steps.size().
  std::vector<std::size_t> passes() const;
};

// What a pass over the matrix has measured: values[s][o - first] is row scale s of the program for output o of the
// matrix.
struct DoraRowScales {
  std::int64_t first = 0;
  std::vector<std::vector<double>> values;
};

MergeProgram make_program(const Merge& merge, const plan::TargetMatrix& matrix);

}  // namespace peft::execution
