#include "base/float_dtypes.h"

namespace peft {

bool is_float(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::f16:
    case Dtype::bf16:
    case Dtype::f8_e5m2:
    case Dtype::f8_e4m3:
    case Dtype::f8_e5m2fnuz:
    case Dtype::f8_e4m3fnuz:
      return true;
    default:
      return false;
  }
}

bool is_plain_float(Dtype dtype) { return is_float(dtype) && info(dtype).bits >= 16; }

}  // namespace peft
