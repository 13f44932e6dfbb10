// What the numbers of an adapter tell at a glance: zeros, NaN, infinities.
#pragma once

#include <string>
#include <vector>

#include "peft/adapter.h"

namespace peft::verbs {

struct ValueCounts {
  std::uint64_t nan = 0, positive_infinity = 0, negative_infinity = 0;
  bool all_zero = true;
};
// Reads the tensor once. Dtypes without NaN count only zeros.
ValueCounts count_values(const TensorFile& file, const TensorInfo& tensor);

// Sentences about the tensors of the factors: pairs whose B is zero, tensors with NaN or infinity.
std::vector<std::string> value_anomalies(const Adapter& adapter, const Factors& factors);

}  // namespace peft::verbs
