// Files whose config has one rank and one scale for all pairs: Tinker's and MLX-LM's. Ranks are padded with zeros to
// the largest, scales other than the most frequent one are folded into B, with one rounding each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "layout/encode/encoded.h"

namespace peft::layout {

// One projection of the experts of one layer.
struct ProjectionStack {
  const Experts* experts = nullptr;
  Projection projection = Projection::none;
  std::vector<const Factor*> factors;  // by expert; null where there is none: its matrices are zero
  std::int64_t in = 0, out = 0;
};

class UniformFile {
 public:
  // Throws LO_NO_FORM for what such files do not hold: DoRA, biases, saved modules, parameters that are no projection.
  UniformFile(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options);

  std::int64_t rank() const { return rank_; }
  double scale() const { return scale_; }
  // Gives all pairs this rank at least, padded with zeros.
  void widen(std::int64_t rank);
  const Model& model() const { return model_; }
  const TensorFile& file() const { return *file_; }

  // Factors of modules, and those of experts by layer and projection; in the order of the factors.
  const std::vector<const Factor*>& dense() const { return dense_; }
  const std::vector<ProjectionStack>& stacks() const { return stacks_; }

  // The values of one side at (row, col) of a tensor's matrix, in steps of one. B is multiplied by what its scale
  // needs.
  Block block_of_a(const Factor& factor, std::int64_t row) const { return {row, 0, 1, factor.a, 1.0}; }
  Block block_of_b(const Factor& factor, std::int64_t row) const;

  // A tensor of these blocks. Its dtype is the widest of its sources, unless one was asked for.
  void add(std::string name, std::vector<std::int64_t> shape, std::int64_t rows, std::int64_t cols,
           std::vector<Block> blocks);
  void step(const std::string& text) { ++steps_[text]; }
  void note(Exactness exactness) { result_.exactness = std::max(result_.exactness, exactness); }
  [[noreturn]] void no_form(const std::string& what, std::string problem, std::string hint) const;
  Encoded finish();

 private:
  void refuse_extras(const Factors& factors) const;
  void add_module(std::span<const Factor> group);
  void add_dense(const Factor& factor);
  void add_missing();
  void measure(const Factors& factors);

  const Model& model_;
  const TensorFile* file_;
  const EncodeOptions& options_;
  std::unordered_map<std::string, const Experts*> experts_;
  std::unordered_map<std::string, std::int64_t> counts_;
  std::vector<const Factor*> dense_;
  std::vector<ProjectionStack> stacks_;
  std::int64_t rank_ = 0;
  double scale_ = 1;
  std::map<std::string, int> steps_;
  Encoded result_;
};

}  // namespace peft::layout
