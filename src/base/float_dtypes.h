// Which dtypes hold numbers.
#pragma once

#include "peft/tensor.h"

namespace peft {

// True for the types a value can be scaled in or converted between.
bool is_float(Dtype dtype);

// Of 16 bits and more: numbers by themselves. Narrower ones are codes, which mean something with their scales only.
bool is_plain_float(Dtype dtype);

}  // namespace peft
