// For tests: each instruction set that the processor has, one after the other. INSTANTIATE_TEST_SUITE_P with
// hwy::SupportedAndGeneratedTargets().
#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cstdint>

namespace peft::execution {

class EveryTarget : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { use(GetParam()); }
  void TearDown() override { use(0); }
  static void use(std::int64_t targets) {  // 0: all
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

}  // namespace peft::execution
