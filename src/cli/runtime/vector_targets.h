// Which vector instructions this machine has, as Highway asks for it.
//
// Highway's own answer lies in its shared library. Whenever that is loaded it measures its clock, which takes 5 to 8
// ms: more than all else that starting `peft` costs, and half of what `import peft_cpp` costs. Nothing else of it is
// needed, so vector_targets.cpp defines the two functions that Highway's headers call:
//   hwy::SupportedTargets()   the sets of instructions that may be used
//   hwy::GetChosenTarget()    the cache of the choice
// A program that is linked with vector_targets.cpp and with --as-needed does not load the library. Programs of tests
// are not: they choose sets of instructions by functions that the library alone has.
//
// The sets are those of Highway 1: each needs what it lists and the set above it.
//   SSSE3      ssse3
//   SSE4       sse4.2, pclmul, aes
//   AVX2       avx2, fma, bmi, bmi2, lzcnt, f16c
//   AVX3       avx512 f, vl, dq, bw
//   AVX3_DL    avx512 vnni, vbmi, vbmi2, vpopcntdq, bitalg; vaes, vpclmulqdq
// Sets that a newer Highway has besides are not used. On other processors, and with another version of Highway, the
// file defines nothing, and the library is loaded.
//
// A set counts only where the operating system keeps its registers, too; the compiler's __builtin_cpu_supports asks for
// both. vector_targets_test.cpp compares the answer with that of Highway's library, which it loads by name.
#pragma once

#include <cstdint>

namespace peft::cli {

// The bits of Highway's HWY_AVX2 and so on; 0 where the library is asked.
std::int64_t detect_vector_targets();

}  // namespace peft::cli
