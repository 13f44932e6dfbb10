// An adapter whose factors were computed: held in memory in the dtype of the result, and planned in any layout.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "peft/layout.h"
#include "peft/model.h"
#include "peft/plan.h"
#include "peft/verbs.h"
#include "verbs/low_rank/groups.h"

namespace peft::verbs {

// One group's factors, rounded.
struct StoredPair {
  std::int64_t in = 0, rank = 0;
  std::vector<std::byte> a, b;  // [rank, in], [rows, rank]
  low_rank::Factors values;     // what the bytes say
};
// Throws NUM_OVERFLOW naming the group.
StoredPair store(const MatrixGroup& group, const low_rank::Factors& factors, Dtype dtype);

// A tensor that is carried along whole.
struct Carried {
  Extra extra;  // its `tensor` is set by NewAdapter
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

Carried carry(const TensorFile& file, const TensorInfo& tensor, const Extra& extra);

// The new factors and tensors, until they are planned.
struct NewAdapter {
  struct Entry {
    MatrixGroup group;
    StoredPair pair;
  };
  std::vector<Entry> entries;  // in natural order of their sites
  std::vector<Carried> carried;
  std::vector<ExpertCount> expert_counts;
  Dtype dtype = Dtype::f32;

  // The result's plan: weights and config. `config` is what the new one is made from. Empties this object.
  Plan plan(const AdapterConfig& config, const Model& model, Layout to);
};

// Everything that one adapter carries: magnitudes, biases and saved modules stay as they are.
std::vector<Carried> carry_all(const Input& input);

// What several adapters carry: saved modules and biases of the base that one of them has, or several have alike. Throws
// CF_UNSUP for what has no sum: DoRA, lora_bias, trained tokens, a module that two save differently. `config` gets the
// entries of the modules.
std::vector<Carried> carry_for_combination(std::span<const Input> inputs, AdapterConfig& config,
                                           std::vector<std::string>& notes);

// Adds a matrix to the report. `error` is ||stored - wanted||, `norm` is ||wanted||. With rank 0 the matrix is zero and
// is named as left out.
void record(LowRankResult& result, const MatrixGroup& group, std::int64_t rank, double norm, double error);
void summarise(LowRankResult& result);  // sets worst and mean

}  // namespace peft::verbs
