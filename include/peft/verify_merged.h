// Whether a model is a base model with adapters merged into it, tensor by tensor; whoever merged it, in whatever form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peft/merge.h"

namespace peft {

struct VerifyMergedOptions {
  std::string merged;  // the model in question
  MergeOptions merge;  // the base and the adapters that it should hold
  int threads = 0;
};

// How far elements are from W + delta in fp64. The bounds, for the dtype D of the merged tensor:
//   exact          the nearest number of D
//   one_rounding   half a unit in the last place of D, plus what a sum of that rank in fp32 may lose
//   two_roundings  of the coarser dtype of base and result, for every adapter: half a last place of the weight and half
//   one of
//                  the delta: tools that round the delta, cast the base first, or store after each adapter
struct MergeBounds {
  std::uint64_t exact = 0, one_rounding = 0, two_roundings = 0, beyond = 0;
  std::uint64_t all() const { return exact + one_rounding + two_roundings + beyond; }
};

struct MergedDifference {
  std::string tensor;          // in the base's name, with "[7]" for one expert of a stacked one
  std::string kind;            // "not_merged", "scaled", "different", "changed", "missing", "extra", "shape"
  std::string what;            // in words
  double factor = 0;           // the multiple of the delta that was found; of "scaled", "not_merged" and "different"
  double relative = 0;         // ||merged - expected|| / ||delta|| (of "changed": / ||base||)
  std::uint64_t elements = 0;  // that are beyond the bounds
};

struct VerifyMergedReport {
  bool same = false;
  std::size_t tensors = 0, changed = 0, copied = 0;  // expected tensors, those with updates, those without
  MergeBounds bounds;                                // of the elements with updates
  std::string bound;                                 // what the elements had to keep, in words
  std::string worst_tensor;                          // where an element is furthest from fp64, in last places
  double worst_places = 0;
  std::vector<MergedDifference> differences;  // up to 100
  std::int64_t num_differences = 0;
  std::vector<std::string> left_out;  // tensors of the adapters that --ignore-unused left out, and why
  std::vector<std::string> notes;
};
VerifyMergedReport verify_merged(const VerifyMergedOptions& options);

}  // namespace peft
