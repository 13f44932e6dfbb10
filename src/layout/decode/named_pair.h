// A pair as the reader of another program's form finds it, and how it becomes factors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/decode/context.h"

namespace peft::layout {

struct NamedPair {
  std::string module;  // transformers path, of either generation; of experts the path of the module that holds them all
  Projection projection = Projection::none;  // of experts
  std::int64_t experts = 0;                  // > 0: that many experts are stacked, and a and b are those of the first
  View a, b;                                 // A [rank, in], B [out, rank]
  std::int64_t a_step = 0, b_step = 0;       // elements from one expert to the next; 0: all share this side
  double scale = 1;
  bool embedding = false;
};

// The experts that a path means, null where the model has none there. Programs call the module differently, but a layer
// has one in nearly all models.
const Experts* experts_at(const Model& model, const std::string& module);

// Adds the factors of a pair to the reading, with the checks that every pair gets. A pair on what the model does not
// have becomes unused. Throws LO_SHAPE where the two sides or the model's weight do not fit, LO_EXPERT where the number
// of experts is not the model's, MD_NEEDED where the experts are those of an unknown model.
void add_pair(Context& context, const NamedPair& pair);

// Names that show describe() the layers and experts of a pair: of a stack the modules of its first and last expert,
// called as `projection_names` says (gate, up, down), or the experts module where that is null.
struct ProjectionNames {
  std::string_view gate, up, down;
  std::string_view of(Projection projection) const {
    return projection == Projection::gate ? gate : projection == Projection::up ? up : down;
  }
};
void add_module_names(const NamedPair& pair, const ProjectionNames* projection_names, std::vector<std::string>& names);

}  // namespace peft::layout
