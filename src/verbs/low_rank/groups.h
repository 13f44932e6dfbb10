// The matrices of one or more adapters, group by group: what combine, resize and extract walk.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "low_rank/spectrum.h"
#include "peft/model.h"
#include "peft/verbs.h"

namespace peft::verbs {

// The matrices that share one A: a single one, or gate and up of an expert. Their rows of B lie one below the other, or
// alternate where the family stores them so.
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

// A group with the factors that the adapters have of it.
struct InputGroup {
  MatrixGroup group;
  std::int64_t in = 0;
  // For each adapter its factor of each of the group's sites; null where it has none.
  std::vector<std::vector<const Factor*>> factors;
};

// Whether gate and up of these experts become one group in the layout: where they lie in one parameter, and either
// every adapter shares lora_A between them or the family alternates their rows.
struct JoinRule {
  bool one_parameter = false, interleaved = false;
};
JoinRule join_rule(const Model& model, Layout to, const Site& site);

// All sites that any adapter has, in natural order. Throws LO_SHAPE where adapters disagree about a matrix.
std::vector<InputGroup> groups_of(std::span<const Input> inputs, const Model& model, Layout to);

// scale * b * a^T of one adapter, as one pair for the whole group; no columns where it has none of the sites.
struct GroupFactors {
  low_rank::Factors values;
  double scale = 1;
};
GroupFactors read_group(const InputGroup& group, std::size_t which, const TensorFile& file);

}  // namespace peft::verbs
