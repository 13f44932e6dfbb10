// What happens to the elements of one place, step by step: how the modes differ.
#pragma once

#include <cstdint>
#include <vector>

#include "execute/merge/inputs/target_matrix.h"
#include "execute/kernels/tile_math.h"

namespace peft::execution {

struct Step {
  enum class Kind : std::uint8_t {
    add,       // W becomes tail(scale * d)
    scale,     // DoRA: W = gain * (W + scale * d), rounded as the mode does
    take_out,  // and back: W = W / gain - scale * d
    measure,   // gain = magnitude / norm(W + scale * d)
  };
  Kind kind = Kind::add;
  std::size_t update = 0;  // counted in the place
  std::size_t row_scale = 0;    // which of the program's gains
  AddRule rule = AddRule::fused;
};

struct MergeProgram {
  std::vector<Step> steps;
  std::vector<std::size_t> row_scales;  // the update whose magnitude each gain is of

  // Steps before the first that needs a gain not measured yet. Ends of the passes over the matrix; the last is
  // steps.size().
  std::vector<std::size_t> passes() const;
};

MergeProgram make_program(const Merge& merge, const TargetMatrix& place);

}  // namespace peft::execution
