// A second, independent reading of PEFT adapters, to judge the library by. It knows the layouts as formulas
//
//     A [E*r, a]  row e*r + k         B [b, r*E]  column k*E + e  (grouped by expert: e*r + k)
//     dP[e] = s B_e A_e ("out_in")    or its transpose ("in_out")
//
// and computes in fp64. Nothing of src/model, src/layout or src/plan is used; model facts come from the golden
// data's facts.json, patterns are matched by std::regex.
#pragma once

#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "support/golden.h"
#include "support/matrix.h"

namespace peft::testing {

struct ModelFacts {
  std::string model_type;
  std::int64_t experts = 0, hidden = 0, intermediate = 0;
  bool in_out = false;       // fused parameters are stored [E, in, out]
  bool interleaved = false;  // output rows gate, up, gate, up
};
ModelFacts facts_of(const std::filesystem::path& model_folder);
// The same model in transformers 5, which stores every family but gpt_oss and llama4 [E, out, in].
ModelFacts in_v5(ModelFacts facts);
// The v5 path of a dense v4 module.
std::string v5_name(const ModelFacts& facts, std::string v4_module);
// How PEFT's wrapper holds dP[e] in a layout, on transformers 5: "out_in" or "in_out".
std::string orientation_of(const ModelFacts& facts, const std::string& layout);

// dW [out, in] = scale * b * a. Keys: "model.layers.0.mlp.experts.7.gate", "model.layers.0.self_attn.q_proj".
struct OracleFactor {
  Matrix a, b;
  double scale = 1;
  Matrix delta() const { return scaled(scale, product(b, a)); }
};
using OracleFactors = std::map<std::string, OracleFactor>;

struct OracleOptions {
  bool grouped_by_expert = false;
  std::string square;  // orientation where both sides of a parameter are equal
};
struct OracleAdapter {
  OracleFactors factors;
  std::set<std::string> modules;       // modules and parameters with LoRA, as the file's own config names them
  std::set<std::string> others;        // keys of all other tensors
  std::set<std::string> orientations;  // seen where the sides differ
  std::vector<std::string> problems;   // what is wrong with the file; empty for a good one
};
OracleAdapter read_oracle(const TensorFile& file, const Json& config, const ModelFacts& facts,
                          const OracleOptions& options = {});
OracleAdapter read_oracle(const std::filesystem::path& adapter_folder, const ModelFacts& facts,
                          const OracleOptions& options = {});

// A dW file (expected/delta.safetensors), cut into the matrices of single experts and turned to [out, in].
// `suffix` selects the adapter: names end with it, and it is taken off ("" or "_other").
std::map<std::string, Matrix> read_deltas(const TensorFile& file, const ModelFacts& facts, const std::string& suffix);

// Without the rank columns that add nothing (B's column is zero). Rank 0: the factor is zero.
OracleFactor trimmed(const OracleFactor& factor);

// PEFT's rank and scaling of a name, from a config alone.
class ScaleRule {
 public:
  explicit ScaleRule(const Json& config) : config_(config) {}
  std::int64_t rank(const std::string& name) const;
  double scale(const std::string& name, std::int64_t rank) const;

 private:
  const Json* find(const char* patterns, const std::string& name) const;
  const Json& config_;
  mutable std::map<std::string, std::regex> compiled_;
};

}  // namespace peft::testing
