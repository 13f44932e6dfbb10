// One expected tensor of a merge against what the merged model has.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "verbs/merged_blame.h"
#include "verbs/merged_values.h"

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

}  // namespace peft::verbs
