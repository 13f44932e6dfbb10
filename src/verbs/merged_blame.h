// What is wrong with a matrix that is not the expected sum: numbers first, then words.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "peft/verify_merged.h"

namespace peft::verbs {

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
