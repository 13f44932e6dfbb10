// Singular values and vectors of a whole matrix, and of a product of thin factors without building it. In fp64. The
// numbers are the same on any number of threads, because one call runs on one thread. The sign of each pair is fixed.
#pragma once

#include <cstdint>
#include <vector>

#include "low_rank/dense.h"

namespace peft::low_rank {

// M = u * diag(s) * v^T; s falls. Of each column of u the element of the largest magnitude is positive.
struct Spectrum {
  Dense u, v;
  std::vector<double> s;
  std::int64_t size() const { return static_cast<std::int64_t>(s.size()); }
};

// Of b * a^T, b [out, r], a [in, r]: QR of both, then the SVD of a matrix of rank r. Never builds the product.
Spectrum spectrum_of_product(const Dense& b, const Dense& a);
// The `rank` largest of a whole matrix. Exact where the matrix is small or rank is a good part of it; else by subspace
// iteration until the energy in the subspace does not grow any more.
Spectrum spectrum_of(const Dense& m, std::int64_t rank);

// The largest singular value.
double spectral_norm(const Dense& m);

// How many singular values are above `floor` and above 2^-40 of the largest one, at most `limit`.
std::int64_t numerical_rank(const Spectrum& spectrum, std::int64_t limit, double floor = 0);

// The first `rank` pairs as factors with even norms: b = u sqrt(s) [out, rank], a = v sqrt(s) [in, rank].
struct Factors {
  Dense b, a;
};
Factors split(Spectrum spectrum, std::int64_t rank);

// b * a^T as a whole matrix.
Dense product(const Dense& b, const Dense& a);
// ||b * a^T||_F, and ||b_x a_x^T - b_y a_y^T||_F, from the factors.
double product_norm(const Dense& b, const Dense& a);
double difference_norm(const Factors& x, const Factors& y);
// ||m - b a^T||_F; m is overwritten.
double residual_norm(Dense& m, const Factors& x);

}  // namespace peft::low_rank
