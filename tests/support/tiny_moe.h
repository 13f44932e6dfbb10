// A Qwen3-MoE of a few hundred numbers, whole: embeddings, attention with biases, norms, router, experts. And sums in
// fp64 that say what an adapter makes of it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "peft/verbs.h"
#include "support/model_writer.h"

namespace peft::testing {

struct TinyMoe {
  static constexpr std::int64_t kHidden = 8, kIntermediate = 6, kExperts = 2, kLayers = 2, kVocabulary = 17, kOut = 8;
  enum class Output { own, tied, tied_and_stored };
  enum class Experts { modules, fused };

  std::string dtype = "BF16";
  std::map<std::string, Stored> tensors;
  Json config;
  TemporaryFolder folder;

  explicit TinyMoe(std::string stored_dtype = "BF16", Output output = Output::own, Experts experts = Experts::modules);
  // In so many files, by name.
  void write_base_folder(std::size_t files = 1) const;
  const Stored& at(const std::string& name) const { return tensors.at(name); }
  // The rows of one tensor, [shape[0], rest].
  Matrix matrix(const std::string& name) const;

  MergeOptions options(std::vector<std::string> adapters = {"adapter"}) const;
  // Plans and executes; the tensors of folder/out.
  std::map<std::string, Found> merge(const MergeOptions& options) const;
  Json merged_config() const { return read_json(folder.path() / "out" / "config.json"); }
};

// An adapter in the making: tensors, and what they do to weights by name, in fp64 before the last rounding.
class Lora {
 public:
  Lora(const TinyMoe& model, std::int64_t rank, double alpha, std::uint64_t seed)
      : model_(model), rank_(rank), alpha_(alpha), draw_(seed) {}

  // The pair of a Linear; its effect on `weight` (or MODULE.weight), plus DoRA with drawn magnitudes, or a bias of
  // lora_B.
  void linear(const std::string& module, bool dora = false, bool bias = false, const std::string& weight = "");
  void embedding(const std::string& module);
  void saved(const std::string& module, const std::string& parameter, std::int64_t rows, std::int64_t cols,
             const std::string& key = "");
  void tokens(const std::string& module, const std::vector<std::int64_t>& ids);
  // Fused experts, as PEFT 0.19.1 writes them.
  void expert_parameter(const std::string& module, const std::string& parameter);

  double scale() const { return alpha_ / static_cast<double>(rank_); }
  void write(const std::string& name, const Json& changes);
  std::vector<Stored>& tensors() { return tensors_; }
  // Weight name -> values; where it was not touched, the base's.
  std::map<std::string, std::vector<double>>& effects() { return effects_; }

 private:
  std::vector<double>& effect(const std::string& weight);

  const TinyMoe& model_;
  std::int64_t rank_;
  double alpha_;
  Draw draw_;
  std::vector<Stored> tensors_;
  std::map<std::string, std::vector<double>> effects_;
};

// Every tensor of the base is there with its bytes, or with the effects rounded once (DoRA: within one last place).
void expect_merged(const TinyMoe& model, const std::map<std::string, Found>& out,
                   const std::map<std::string, std::vector<double>>& effects, bool one_place_off = false);
// verify --merged agrees with folder/out; and names every changed tensor when it is put back to what the base has.
void expect_verified(const TinyMoe& model, const MergeOptions& options);

}  // namespace peft::testing
