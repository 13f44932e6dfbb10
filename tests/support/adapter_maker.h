// Adapters for tests of `verify`, built in memory tensor by tensor.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "support/test_tensors.h"
#include "verbs/verify/verify.h"

namespace peft::testing {

inline Site expert_site(std::int64_t expert, Projection projection) {
  return {"model.layers.0.mlp.experts", "", expert, projection};
}
inline const Site kDense{"model.layers.0.self_attn.q_proj", "", -1, Projection::none};

// One adapter, built tensor by tensor.
class Maker {
 public:
  explicit Maker(Dtype dtype = Dtype::f32) : dtype_(dtype) {}

  // A pair of tensors as PEFT writes them for one module.
  Maker& pair(const Site& site, const Dense& a, const Dense& b, double scale = 1) {
    const auto ta = add(a), tb = add(b);
    return factor(site, whole(ta, a.rows, a.cols), whole(tb, b.rows, b.cols), scale);
  }
  Maker& factor(const Site& site, const View& a, const View& b, double scale = 1) {
    factors_.factors.push_back({site, FactorKind::linear, b.rows, a.cols, a.rows, scale, a, b});
    return *this;
  }
  Maker& extra(ExtraKind kind, const Site& site, const std::string& suffix, Dtype dtype,
               std::vector<std::int64_t> shape, const std::vector<double>& values) {
    factors_.extras.push_back({kind, site, suffix, tensors_.add(name(), dtype, std::move(shape), values)});
    return *this;
  }
  std::uint32_t add(const Dense& m) { return tensors_.add(name(), dtype_, m); }
  Tensors& tensors() { return tensors_; }
  Factors& factors() { return factors_; }

  Input input() {
    Input input;
    input.adapter.weights = tensors_.file("adapter.safetensors");
    input.reading.factors = factors_;
    return input;
  }

 private:
  std::string name() { return "t" + std::to_string(count_++); }

  Dtype dtype_;
  Tensors tensors_;
  Factors factors_;
  int count_ = 0;
};

inline VerifyReport verify_pair(Maker& x, Maker& y, bool rounded = true) {
  VerifyOptions options;
  options.tolerance_rounded = rounded;
  options.threads = 2;
  return verbs::compare(x.input(), y.input(), options);
}

inline Dense minus(const Dense& x, const Dense& y) {
  Dense result = x;
  for (std::size_t i = 0; i < result.values.size(); ++i) result.values[i] -= y.values[i];
  return result;
}

// A rounded to 24 bits times a factor: what a program stores that folds the scale into an F32 tensor.
inline Dense folded(const Dense& m, double factor) {
  Dense result = m;
  for (double& v : result.values) v = static_cast<double>(static_cast<float>(v * factor));
  return result;
}

inline const Dense kA = random_dense(4, 24, 1), kB = random_dense(16, 4, 2);

// Experts fused as PEFT does it: A rows e * r + k, B columns k * E + e; E != r.
inline void add_fused(Maker& maker, const std::vector<Dense>& as, const std::vector<Dense>& bs,
                      const std::vector<int>& order) {
  const auto experts = static_cast<std::int64_t>(as.size()), rank = as[0].rows, in = as[0].cols, out = bs[0].rows;
  Dense a(experts * rank, in), b(out, rank * experts);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < in; ++j) a.at(e * rank + k, j) = as[e].at(k, j);
      for (std::int64_t i = 0; i < out; ++i) b.at(i, k * experts + e) = bs[e].at(i, k);
    }
  }
  const auto ta = maker.add(a), tb = maker.add(b);
  for (std::int64_t e = 0; e < experts; ++e) {
    maker.factor(expert_site(e, Projection::down), whole(ta, experts * rank, in).row_range(order[e] * rank, rank),
                 whole(tb, out, rank * experts).col_range(order[e], rank, experts), 2);
  }
}

struct ExpertPairs {
  std::vector<Dense> a, b;
  ExpertPairs(int count, std::int64_t rank, std::int64_t in, std::int64_t out) {
    for (int e = 0; e < count; ++e) {
      a.push_back(random_dense(rank, in, 100 + e));
      b.push_back(random_dense(out, rank, 200 + e));
    }
  }
};

}  // namespace peft::testing
