#include "cli/runtime/vector_targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#if HWY_ARCH_X86 && HWY_MAJOR == 1 && defined(__GNUC__)

#define PEFT_HAS(feature) (__builtin_cpu_supports(feature) != 0)

std::int64_t peft::cli::detect_vector_targets() {
  __builtin_cpu_init();
  const bool ssse3 = PEFT_HAS("ssse3");
  const bool sse4 = ssse3 && PEFT_HAS("sse4.2") && PEFT_HAS("pclmul") && PEFT_HAS("aes");
  const bool avx2 = sse4 && PEFT_HAS("avx2") && PEFT_HAS("fma") && PEFT_HAS("bmi") && PEFT_HAS("bmi2") &&
                    PEFT_HAS("lzcnt") && PEFT_HAS("f16c");
  const bool avx3 = avx2 && PEFT_HAS("avx512f") && PEFT_HAS("avx512vl") && PEFT_HAS("avx512dq") && PEFT_HAS("avx512bw");
  const bool avx3_dl = avx3 && PEFT_HAS("avx512vnni") && PEFT_HAS("avx512vbmi") && PEFT_HAS("avx512vbmi2") &&
                       PEFT_HAS("avx512vpopcntdq") && PEFT_HAS("avx512bitalg") && PEFT_HAS("vaes") &&
                       PEFT_HAS("vpclmulqdq");
  std::int64_t targets = HWY_SCALAR | HWY_EMU128;
  const auto add = [&targets](std::int64_t target, bool there) { targets |= there ? target : 0; };
  add(HWY_SSSE3, ssse3);
  add(HWY_SSE4, sse4);
  add(HWY_AVX2, avx2);
  add(HWY_AVX3, avx3);
  add(HWY_AVX3_DL, avx3_dl);
  return targets;
}

namespace hwy {

std::int64_t SupportedTargets() {
  static const std::int64_t targets = peft::cli::detect_vector_targets();
  return targets;
}

ChosenTarget& GetChosenTarget() {
  static ChosenTarget chosen;
  return chosen;
}

}  // namespace hwy

#else

std::int64_t peft::cli::detect_vector_targets() { return 0; }

#endif
