// An adapter whose factors were computed: held in memory in the dtype of the result, and planned in any layout.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "low_rank/spectrum.h"
#include "peft/layout.h"
#include "peft/model.h"
#include "peft/plan.h"

namespace peft::verbs {

// The matrices that share one A: a single one, or gate and up of an expert, whose B lie one below the other (or row by
// row in turns where the family stores them so).
struct Unit {
  std::vector<Site> sites;
  std::vector<std::int64_t> out;  // rows of each
  FactorKind kind = FactorKind::linear;
  bool interleaved = false;

  std::int64_t rows() const;
  // Rows of the unit's B that are the i-th site's: first, and step.
  std::int64_t first_row(std::size_t i) const;
  std::int64_t row_step() const { return interleaved ? static_cast<std::int64_t>(sites.size()) : 1; }
  std::string name() const;  // "model.layers.0.mlp.experts.7.gate+up"
};

// One unit's factors, rounded.
struct StoredPair {
  std::int64_t in = 0, rank = 0;
  std::vector<std::byte> a, b;  // [rank, in], [rows, rank]
  low_rank::Factors values;     // what the bytes say
};
// Throws NUM_OVERFLOW naming the unit.
StoredPair store(const Unit& unit, const low_rank::Factors& factors, Dtype dtype);

// A tensor that is carried along whole.
struct Carried {
  Extra extra;  // its `tensor` is set by NewAdapter
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

struct NewAdapter {
  struct Entry {
    Unit unit;
    StoredPair pair;
  };
  std::vector<Entry> entries;  // in natural order of their sites
  std::vector<Carried> carried;
  std::vector<ExpertCount> expert_counts;
  Dtype dtype = Dtype::f32;

  // The result's plan: weights and config. `config` is what the new one is made from. Empties this object.
  Plan plan(const AdapterConfig& config, const Model& model, Layout to);
};

}  // namespace peft::verbs
