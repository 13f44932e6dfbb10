// Which vector instructions this machine has, as Highway asks for it. Highway's own answer lies in its shared library,
// which measures its clock for 5 to 8 ms whenever it is loaded: more than all else that starting `peft` costs. With
// this answer the program and the Python module need not load it.
#include <hwy/highway.h>
#include <hwy/targets.h>

#if HWY_ARCH_X86 && HWY_MAJOR == 1 && defined(__GNUC__)
namespace hwy {
namespace {

std::int64_t detect() {
  __builtin_cpu_init();
  std::int64_t targets = HWY_SCALAR | HWY_EMU128;
  const auto add = [&targets](std::int64_t target, bool there) { targets |= there ? target : 0; };
  const bool ssse3 = __builtin_cpu_supports("ssse3") != 0;
  const bool sse4 =
      ssse3 && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("f16c");
  const bool avx3 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const bool avx3_dl = avx3 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("vpclmulqdq") &&
                       __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
                       __builtin_cpu_supports("vaes") && __builtin_cpu_supports("avx512vpopcntdq") &&
                       __builtin_cpu_supports("avx512bitalg");
  add(HWY_SSSE3, ssse3);
  add(HWY_SSE4, sse4);
  add(HWY_AVX2, avx2);
  add(HWY_AVX3, avx3);
  add(HWY_AVX3_DL, avx3_dl);
  return targets;
}

}  // namespace

std::int64_t SupportedTargets() {
  static const std::int64_t targets = detect();
  return targets;
}

ChosenTarget& GetChosenTarget() {
  static ChosenTarget chosen;
  return chosen;
}

}  // namespace hwy
#endif
