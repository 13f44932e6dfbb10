// Words for how two factors differ: what helps to find the cause.
#pragma once

#include <span>
#include <string>

#include "peft/adapter.h"
#include "peft/safetensors.h"

namespace peft::verbs {

std::string describe_shapes(const Factor& x, const Factor& y);

// Rank or scale that differ, A and B that trade places (the transposed update), or the first elements that differ.
std::string describe_difference(const Factor& x, const TensorFile& file_x, const Factor& y, const TensorFile& file_y);

// Another site of the second adapter that holds exactly what x holds (experts or projections that trade places);
// null if there is none.
const Factor* find_twin(const Factor& x, const TensorFile& file_x, std::span<const Factor> candidates,
                        const TensorFile& file_y);

}  // namespace peft::verbs
