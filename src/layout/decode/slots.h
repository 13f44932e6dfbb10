// The tensors of an adapter file as pairs: which tensors belong together, and which belong to nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "layout/keys.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/layout.h"

namespace peft::layout {

inline constexpr std::uint32_t kNoTensor = 0xffffffff;

// One LoRA pair of the file, and where it sits.
struct Slot {
  std::string_view module;  // as the file spells it
  int depth = 0;            // nesting of parameter wrappers
  bool embedding = false;
  std::uint32_t a = kNoTensor, b = kNoTensor, b_bias = kNoTensor, magnitude = kNoTensor;
  bool outer = false;  // one side is that of all experts, [1, rows, columns]
};

// A tensor that is no part of a LoRA pair.
struct Single {
  Key key;
  std::uint32_t tensor = kNoTensor;
};

// A tensor that belongs to nothing, and why.
struct Unused {
  std::string name;
  ErrorCode code;
  std::string reason;
};

struct Slots {
  std::vector<Slot> slots;  // in natural order of module, innermost wrapper first
  std::vector<Single> singles;
  std::vector<Unused> unused;
};

// Throws LO_AMBIG where two tensors stand for the same thing, LO_SUFFIX for tensors of another method, and, unless
// `ignore_unused`, LO_PAIR for a tensor without its partner.
Slots collect_slots(const Adapter& adapter, bool ignore_unused);

// Throws an error that names all unused tensors, unless `ignore_unused`.
void refuse_unused(const std::vector<Unused>& unused, const Adapter& adapter, bool ignore_unused);

}  // namespace peft::layout
