// One expected tensor of a merge against what the merged model has.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "peft/verify_merged.h"
#include "verbs/verify_merged/values.h"

namespace peft::verbs {

// A tensor of a merge's plan with the sites of its updates.
struct ExpectedTensor {
  const MergePlan* merge = nullptr;
  std::size_t file = 0, tensor = 0;
  std::vector<std::pair<std::string, View>> sites;  // where each matrix with updates lies; every site once
  bool replaced = false;                            // values of an adapter are put in the place of the base's
  const PlannedTensor& planned() const { return merge->plan.files[file].tensors[tensor]; }
};
std::vector<ExpectedTensor> expected_tensors(const MergePlan& merge);

// One entry for each site; the last one for elements that no adapter touches.
std::vector<MatrixSums> compare_tensor(const ExpectedTensor& expected, const MergedModel& merged,
                                       const Counterpart& counterpart);

// Of each of several deltas the multiple that was added to a site; empty where they do not tell. `alone` are plans of
// one adapter each.
std::vector<double> factors_of(const std::string& tensor, const std::string& site, std::span<const MergePlan> alone,
                               const ExpectedTensor& expected, const MergedModel& merged,
                               const Counterpart& counterpart);

// Sums over the elements of one matrix. D is merged - base, Delta expected - base.
struct MatrixSums {
  std::string site;
  std::uint64_t elements = 0;
  MergeBounds bounds;
  double base = 0, change = 0, delta = 0, product = 0;  // ||base||^2, ||D||^2, ||Delta||^2, <D, Delta>
  double error = 0, noise = 0;                          // ||merged - expected||^2; what one rounding each makes of it
  std::uint64_t unchanged = 0;                          // elements that are those of the base
  double worst_places = 0;
};

// Nothing when the matrix is what it should be.
std::optional<MergedDifference> blame(const MatrixSums& sums, const std::string& tensor);

// The multiples of several deltas that explain D best: gram[i][j] = <Delta_i, Delta_j>, right[i] = <D, Delta_i>.
// Empty where the deltas do not tell.
std::vector<double> solve(std::vector<std::vector<double>> gram, std::vector<double> right);
std::string factor_text(double factor);  // "not merged", "merged twice", "merged 0.5 times"

}  // namespace peft::verbs
