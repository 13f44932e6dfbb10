// The factors of one fused parameter, as the encoder of fused layouts collects and compares them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "layout/forms.h"
#include "peft/adapter.h"
#include "peft/plan.h"

namespace peft::layout {

struct TargetEntry;  // encoded.h

// parts[p][e] is the factor of projection p of expert e, null where there is none.
struct Stack {
  std::vector<std::vector<const Factor*>> parts;
  std::int64_t experts = 0;
  std::vector<std::int64_t> ranks;  // of each part: the largest of its experts
  std::int64_t rank = 0;            // of the fused pair
  bool shared_a = false;
  double scale = 1;
  Dims dims;                      // natural widths of the fused matrix
  std::vector<std::int64_t> out;  // rows of each part
};
// The factors of the group that belong to the parameter.
Stack collect(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts);
std::vector<const Factor*> all_of(const Stack& stack);

// The one scale of a fused pair: the scale that most factors have. The other scales are folded into B, with one
// rounding each. The result is 0 only where all scales are 0, as alpha may be.
double common_scale(const std::vector<const Factor*>& factors);
// The same of a config's targets. 1 where there are none.
double common_scale(const std::vector<TargetEntry>& targets);
// The factor by which B is multiplied where the scale is `common`.
double folded_gain(const Factor& factor, double common);

// How many experts a layer has: as the model says, or as many as the file shows (`counted`) when that is more. Where
// neither is sure, the highest index and one.
std::int64_t expert_count(std::int64_t known, bool assumed, std::int64_t counted, std::span<const Factor> group);

// What it means for values to be multiplied, and to get another dtype.
Exactness exactness_of_gain(double gain);
Exactness exactness_of_cast(Dtype from, Dtype to);
Dtype wider(Dtype a, Dtype b);  // the narrowest dtype that holds all values of both

// Whether two views of one file have the same bytes, element by element.
bool same_values(const TensorFile& file, const View& x, const View& y);
// Whether gate and up of every expert have the same lora_A. One A then serves both, the rank need not double, and the
// two B become the rows of one. Values are compared where the views differ.
bool shares_a(const TensorFile* file, const Stack& stack);
// Gate and up of one expert as the rows of one B. nullopt unless they lie like that in the file.
std::optional<View> joined_b(const Factor& gate, const Factor& up, bool interleaved);
bool all_join(const Stack& stack, bool interleaved);

}  // namespace peft::layout
