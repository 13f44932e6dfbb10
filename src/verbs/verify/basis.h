// Two updates whose elements do not pair up: the same components in another order, the same update written in another
// basis (what an SVD of it gives), or another update. The difference is measured from QR of the factors: dW is never
// built.
//
// The bound. One side stores dW = s sum b_k a_k^T in a dtype whose rounding moves an element v by at most u |v| + e: u
// is half a last place, e half the smallest subnormal number. Then the vector a_k [in] is moved by at most da_k = u
// |a_k| + e sqrt(in), and s b_k [out] by db_k = u |s b_k| + |s| e sqrt(out), in their lengths. The update moves by
//
//   s sum (b_k + moved b_k) (a_k + moved a_k)^T - dW
//     = sum (moved b_k) a_k^T + sum b_k (moved a_k)^T + sum (moved b_k) (moved a_k)^T
//
// Let N_A be the matrix of the a_k divided by their lengths. The first sum is [(moved b_k) |a_k|] N_A^T, so it is at
// most sqrt(sum (db_k |a_k|)^2) ||N_A||_2 in the Frobenius norm; likewise the second, with A and B in each other's
// role. The third is at most sum db_k da_k. Dividing by the lengths makes the bound the same wherever the scale and the
// lengths of the components sit. Both sides may have been rounded, each from exact factors of the same update: their
// bounds add up.
//
// Programs that change a basis compute in fp64 at best: a last place of F64 is not all that they lose. For that
// 2^-40 sqrt(rank) ||N_A||_2 sqrt(sum (|s b_k| |a_k|)^2) is added, which is no less than 2^-40 ||dW||; it is seen in
// F64 files alone.
#pragma once

#include "adapter/factor_math.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {

// Never bit-exact or value-exact. `what` stays empty where both are in the same basis and values differ.
//
// Values that differ in the same basis are not explained by a rounding of the whole. The basis is the same where at
// least half of the vectors
// a_k and b_k of one side are the other's, up to a power of two and the order, and what changes in the others does not
// cancel in the product. Elements of both A and B that are off by no more than a last place are what the same
// computation gives when it is done again on its own rounded result: that is taken as another basis.
Verdict compare_bases(const adapter::Components& x, const adapter::Components& y);

}  // namespace peft::verbs
