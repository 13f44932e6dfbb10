#include "cli/runtime/vector_targets.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

namespace peft::cli {
namespace {

// This program is linked with vector_targets.cpp, so that Highway's own answer has to be asked for by its library's
// name.
TEST(VectorTargets, AreHighways) {
  if (detect_vector_targets() == 0) GTEST_SKIP() << "Highway is asked here";
  void* library = dlopen("libhwy.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << "there is no shared library of Highway";
  auto* const theirs = reinterpret_cast<std::int64_t (*)()>(dlsym(library, "_ZN3hwy16SupportedTargetsEv"));
  ASSERT_NE(theirs, nullptr);
  const std::int64_t known = HWY_SCALAR | HWY_EMU128 | HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL;
  EXPECT_EQ(detect_vector_targets(), theirs() & known);
  EXPECT_EQ(hwy::SupportedTargets(), detect_vector_targets());
  dlclose(library);
}

}  // namespace
}  // namespace peft::cli
