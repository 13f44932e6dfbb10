// An adapter whose factors were computed: held in memory in the dtype of the result, and planned in any layout.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "low_rank/spectrum.h"
#include "peft/layout.h"
#include "peft/low_rank.h"
#include "peft/model.h"
#include "peft/plan.h"
#include "peft/verbs.h"

namespace peft::verbs {

// The matrices that share one A: a single one, or gate and up of an expert, whose B lie one below the other (or row by
// row in turns where the family stores them so).
struct MatrixGroup {
  std::vector<Site> sites;
  std::vector<std::int64_t> out;  // rows of each
  FactorKind kind = FactorKind::linear;
  bool interleaved = false;

  std::int64_t rows() const;
  // Rows of the group's B that are the i-th site's: first, and step.
  std::int64_t first_row(std::size_t i) const;
  std::int64_t row_step() const { return interleaved ? static_cast<std::int64_t>(sites.size()) : 1; }
  std::string name() const;  // "model.layers.0.mlp.experts.7.gate+up"
};

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

// All of one adapter's: its magnitudes, biases and saved modules stay what they are.
std::vector<Carried> carry_all(const Input& input);

// Of several adapters: saved modules and biases of the base that only one of them has, or all the same. Throws CF_UNSUP
// for what has no sum (DoRA, lora_bias, trained tokens, one module saved by two). `config` gets what belongs to them.
std::vector<Carried> carry_for_combination(std::span<const Input> inputs, AdapterConfig& config,
                                           std::vector<std::string>& notes);

Carried carry(const TensorFile& file, const TensorInfo& tensor, const Extra& extra);

// `error` is ||stored - wanted||, `norm` ||wanted||. Rank 0: the matrix came out as zero and is left out.
void record(LowRankResult& result, const MatrixGroup& group, std::int64_t rank, double norm, double error);
void summarise(LowRankResult& result);  // worst and mean

}  // namespace peft::verbs
