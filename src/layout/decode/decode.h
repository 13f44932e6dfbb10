// From pairs to factors: the two forms in which experts are written, and everything dense.
#pragma once

#include <vector>

#include "layout/decode/context.h"

namespace peft::layout {

// One pair on a module or on a 2-D parameter. The second form takes the pair and its scale as another form's reader has
// found them; the slot names the module and the tensors.
void decode_dense(Context& context, const Slot& slot);
void add_dense(Context& context, const Slot& slot, const Pair& pair, double scale);
// One pair of one expert's projection.
void add_expert(Context& context, const Slot& slot, const Model::Located& located, const Pair& pair, double scale);
void decode_per_expert(Context& context, const Slot& slot, const Model::Located& located);
// All pairs on modules of experts, in natural order. `located[i]` belongs to `slots[i]`.
void decode_fused(Context& context, const std::vector<Slot>& slots, const std::vector<Model::Located>& located);
// A tensor that is no part of a pair: of a saved module, a bias, a token embedding.
void decode_single(Context& context, const Single& single);

}  // namespace peft::layout
