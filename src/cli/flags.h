// Flags that several verbs have: how they are declared, and what the typed values mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/execute.h"
#include "peft/verbs.h"

namespace CLI {  // its header takes seconds to compile: only the sources that declare flags include it
class App;
class Validator;
}  // namespace CLI

namespace peft::cli {

// How to read an adapter.
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
// `two`: some flags may be given for A, then for B.
void add_input_flags(CLI::App& verb, InputFlags& input, bool two);

void add_json(CLI::App& verb, bool& json);
// How output is written: --overwrite, --threads, --no-sync, --no-readback, --quiet.
void add_execute_flags(CLI::App& verb, ExecuteOptions& execute, bool& quiet);
// A check that does not add its range to the value's name in --help.
CLI::Validator quiet(CLI::Validator check);

// Throw USAGE naming the flag, the value and the values there are. Of optional ones "" is "not given".
Layout parse_layout_flag(const std::string& flag, const std::string& value);
Dtype parse_dtype_flag(const std::string& flag, const std::string& value);
std::optional<Layout> parse_optional_layout(const std::string& flag, const std::string& value);
std::optional<Dtype> parse_optional_dtype(const std::string& flag, const std::string& value);

inline constexpr std::string_view kQ8 = "Q8_0";  // no dtype: a quantised type of GGUF files

// Throws USAGE for a value that is not one of `allowed`. The command line's parser has checked this already.
void require_choice(const std::string& flag, const std::string& value, const std::vector<std::string>& allowed);

// Throws USAGE where neither an output folder nor --dry-run is given.
void require_out(const std::string& out, bool dry_run);

// Values of flags, for messages and shell completion.
std::vector<std::string> layout_names();
std::vector<std::string> float_dtype_names();

}  // namespace peft::cli
