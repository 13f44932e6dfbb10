// Comparisons of the golden runner and the round-trip tests. Each throws Failure with what was expected and got.
#pragma once

#include <fmt/format.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "peft/error.h"
#include "peft/verbs.h"
#include "support/oracle.h"

namespace peft::testing {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
inline void require(bool holds, const std::string& otherwise) {
  if (!holds) throw Failure(otherwise);
}

// How far a delta may be from the right one, element by element, as a multiple of s * |B| * |A|.
// kExact allows for the order of fp64 additions; rounding() for B multiplied by a scale and rounded once to its dtype.
inline constexpr double kExact = 1e-14;
inline double rounding(Dtype dtype) { return dtype == Dtype::bf16 ? 0x1p-7 : dtype == Dtype::f16 ? 0x1p-10 : 0x1p-23; }

// The library's own reading, in the oracle's terms.
OracleFactors factors_of(const Input& input);

// Absent factors count as zero.
void compare_deltas(const OracleFactors& want, const OracleFactors& got, double tolerance);
// The same A, B (rank columns that add nothing left out) and scale. `scale_may_move`: a power of two may have gone
// from the scale to B, which changes no bit of the product.
void compare_factors(const OracleFactors& want, const OracleFactors& got, bool scale_may_move = false);
// Against dW matrices of the real program; `tolerance` is absolute. Every matrix of `want` must be there.
void compare_deltas(const std::map<std::string, Matrix>& want, const OracleFactors& got, double tolerance);

// Every tensor of either file, bit for bit after widening. `with_extra`: `want` may have further pairs whose
// lora_B is zero (layers that PEFT gave an empty LoRA).
void compare_tensors(const TensorFile& want, const TensorFile& got, bool with_extra = false);
// The same names, dtypes, shapes and bytes.
void compare_bytes(const TensorFile& want, const TensorFile& got);

// Module or parameter -> rank and scaling, as PEFT resolves a config.
using Resolved = std::map<std::string, std::pair<std::int64_t, double>>;
Resolved resolve(const AdapterConfig& config, const Model& model, Generation generation);
// The config puts LoRA exactly where the file has it, with the ranks of the file and these scales.
void compare_targets(const Resolved& resolved, const OracleAdapter& adapter, const Json& config);
void compare_resolved(const Resolved& want, const Resolved& got);

// Loads what was written in `layout`: as a user would, and with --from where the file alone is ambiguous.
Input load_as(const std::string& folder, const InputOptions& options, Layout layout);
// What was written in `layout` to the folder: the folder, or the file in it.
std::string path_of(const std::string& folder, Layout layout);
// The layouts of trainers. What they pad with zeros (a rank, a projection without LoRA) stays on the way back.
bool is_trainer_layout(Layout layout);
// Layouts of other programs than PEFT and Unsloth.
bool is_program_layout(Layout layout);
// As that program's files, read again: the same function. nullopt where they have no such form.
std::optional<Exactness> check_program_tour(const Input& input, const ConvertOptions& options, Layout to,
                                            const OracleFactors& want, const std::string& folder);
// Whether the way back gives the bytes of the original: no value was rounded, and ranks that were padded with zeros are
// found again (gguf).
bool gives_bytes_back(Layout layout, Exactness exactness);
// Plans, and writes the result to `folder`.
Plan convert(const Input& input, ConvertOptions options, Layout to, const std::string& folder);

// Runs `action`; the error it must end in.
template <typename Action>
Error expect_error(const std::string& what, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  throw Failure(what + ": expected an error, got none");
}

}  // namespace peft::testing
