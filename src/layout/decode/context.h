// What all decoders need: the adapter, the model, the reading they add to; a pair as matrices; rank and scale.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "layout/decode/slots.h"
#include "peft/adapter.h"
#include "peft/layout.h"

namespace peft::layout {

struct Context {
  const Adapter& adapter;
  const Model& model;
  const ReadOptions& options;
  Reading& reading;
  std::vector<Unused>& unused;

  const TensorInfo& tensor(std::uint32_t index) const { return adapter.weights->tensors()[index]; }
  // The place of errors about a tensor.
  ErrorPlace at(std::uint32_t index) const {
    return peft::at(adapter.weights->path(), std::string(tensor(index).name));
  }
  // Puts all tensors of a pair into `unused`.
  void leave_out(const Slot& slot, ErrorCode code, const std::string& reason);
};

// Throws ST_DTYPE for a tensor whose dtype factors cannot have.
void require_readable(const Context& context, std::uint32_t index);

// The PEFT version whose rules the file follows, and what says so: NeMo's marker beside it, else its config.
std::pair<AdapterConfig::Version, std::string> writing_version(const Context& context);

// Rank and scale of a slot. The rank is that of the tensor; the config must have the same rank for `name`.
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

}  // namespace peft::layout
