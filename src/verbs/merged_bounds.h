// How far an element of a merged model may be from the exact sum, and how far it is.
#pragma once

#include <vector>

#include "peft/verify_merged.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {

// What the sums of a plan's updates may lose in fp32, for a run of rows of a tensor.
struct Slack {
  std::vector<double>
      of_sums;  // |s| (rank + 4) 2^-24 |b_i| |a_j|, over all updates: the error of a sum of that rank in fp32
  std::vector<double> magnitude;  // |s| |b_i| |a_j|: no delta is larger (Cauchy and Schwarz)
};
// Norms of the rows of b and of the columns of a, update by update.
class SlackOf {
 public:
  SlackOf(const Plan& plan, const PlannedTensor& tensor);
  Slack rows(std::int64_t first, std::int64_t count) const;
  std::size_t adapters() const { return adapters_; }
  bool dora() const { return dora_; }

 private:
  const PlannedTensor& tensor_;
  std::vector<std::vector<double>> b_, a_;
  std::size_t adapters_ = 0;
  bool dora_ = false;
};

enum class Fit : std::uint8_t { exact, one_rounding, two_roundings, beyond };

class Judge {
 public:
  // `result`: dtype of the merged values; `base`: what W was in before.
  Judge(Dtype result, Dtype base, const SlackOf& slack);
  Fit judge(double base, double expected, double merged, double slack, double delta_bound) const;
  double places(double expected, double merged) const;  // distance in last places of the result's dtype

 private:
  Precision result_, coarse_;
  bool narrowed_;
  double times_;     // roundings of weights that tools may do
  double relative_;  // fp32 and DoRA norms: of the value itself
};

}  // namespace peft::verbs
