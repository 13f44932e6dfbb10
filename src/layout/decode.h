// From pairs to factors: the two forms in which experts are written, and everything dense.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layout/slots.h"
#include "peft/adapter.h"
#include "peft/layout.h"

namespace peft::layout {

// What decoding one adapter needs at hand.
struct Context {
  const Adapter& adapter;
  const Model& model;
  const ReadOptions& options;
  Reading& reading;
  std::vector<Unused>& unused;

  const TensorInfo& tensor(std::uint32_t index) const { return adapter.weights->tensors()[index]; }
  [[noreturn]] void fail(ErrorCode code, std::uint32_t tensor, std::string problem, std::string expected = {},
                         std::string got = {}, std::string hint = {}) const;
};

// Rank and scale of a slot: the rank is the tensor's, and must be the config's for `name`.
struct Scale {
  std::int64_t rank = 0;
  double scale = 1;
};
Scale scale_of(const Context& context, std::uint32_t a, std::int64_t rank, const std::string& name);

// A slot as a matrix pair: A [rank, in], B [out, rank]. Throws LO_SHAPE when the shapes do not fit each other.
struct Pair {
  View a, b;
  std::int64_t rank = 0, in = 0, out = 0;
};
Pair pair_of(const Context& context, const Slot& slot);

// "[24, 3]"
std::string shape_text(std::span<const std::int64_t> shape);

// One pair on a module or on a 2-D parameter.
void decode_dense(Context& context, const Slot& slot);
// One pair of one expert's projection.
void decode_per_expert(Context& context, const Slot& slot, const Model::Located& located);
// All pairs on the experts modules of the file, in natural order; `located[i]` belongs to `slots[i]`.
void decode_fused(Context& context, const std::vector<Slot>& slots, const std::vector<Model::Located>& located);
// Tensors that are no pair: saved modules, biases, token embeddings.
void decode_single(Context& context, const Single& single);

}  // namespace peft::layout
