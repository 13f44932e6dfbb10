// The flags that say how to read an adapter, as typed; shared by inspect, convert and verify.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peft/verbs.h"

namespace peft::cli {

struct InputFlags {
  std::string base, family, families_file;
  std::int64_t num_experts = 0;
  // `verify` takes these once for both adapters, or twice: for A, then for B. "auto" stands for "not given".
  std::vector<std::string> from, orientation, b_packing, adapter_name;
  bool ignore_unused = false;
  OpenOptions open;

  // For the first (0) or second (1) adapter. Throws USAGE for a value that is not one of those allowed.
  InputOptions options(std::size_t which = 0) const;
};

// Throw USAGE naming the flag, the value and the values there are.
Layout parse_layout_flag(const std::string& flag, const std::string& value);
Dtype parse_dtype_flag(const std::string& flag, const std::string& value);

// Values of flags, for messages and shell completion.
std::vector<std::string> layout_names();
std::vector<std::string> float_dtype_names();

}  // namespace peft::cli
