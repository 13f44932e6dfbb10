// One expected tensor of a merge against what the merged model has: sums first, then what is wrong in words.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/verbs.h"
#include "verbs/verify_merged/values.h"

namespace peft::verbs {

// A tensor of a merge's plan with the sites of its updates.
struct ExpectedTensor {
  const MergePlan* merge = nullptr;
  std::size_t file = 0, tensor = 0;
  std::vector<std::pair<Site, View>> sites;  // where each matrix with updates lies; every site once
  bool replaced = false;                     // values of an adapter are put in the place of the base's
  const PlannedTensor& planned() const { return merge->plan.files[file].tensors[tensor]; }
};
std::vector<ExpectedTensor> expected_tensors(const MergePlan& merge);

// Sums over the elements of one matrix. D is merged - base, Delta is expected - base.
struct MatrixSums {
  std::optional<Site> site;  // absent: elements that no adapter touches
  std::uint64_t elements = 0;
  MergeBounds bounds;
  double base = 0, change = 0, delta = 0, product = 0;  // ||base||^2, ||D||^2, ||Delta||^2, <D, Delta>
  double error = 0;                                     // ||merged - expected||^2
  double noise = 0;             // the part of `error` that one rounding of each element explains
  std::uint64_t unchanged = 0;  // elements that are those of the base
  double worst_places = 0;
};

// One entry for each site; the last one is for elements that no adapter touches. Empty where the bytes are the same.
std::vector<MatrixSums> compare_tensor(const ExpectedTensor& expected, const MergedModel& merged,
                                       const Counterpart& counterpart);

// What is wrong with the matrix; nullopt where it is what it should be. `tensor` names it where it is no site.
std::optional<MergedDifference> difference_of(const MatrixSums& sums, const std::string& tensor);

// Which multiple of each of several deltas was added to a site; empty where they do not tell. `alone` are plans of one
// adapter each.
std::vector<double> factors_of(const std::string& tensor, const Site& site, std::span<const MergePlan> alone,
                               const ExpectedTensor& expected, const MergedModel& merged,
                               const Counterpart& counterpart);
std::string factor_text(double factor);  // "not merged", "merged twice", "merged 0.5 times"

}  // namespace peft::verbs
