#include "peft/error.h"

#include <gtest/gtest.h>

namespace peft {
namespace {

TEST(Error, PlaceKeepsFileAndTensor) {
  const ErrorPlace here = at("a.safetensors", "q.lora_A");
  try {
    here.fail(ErrorCode::ST_SHAPE, {.problem = "wrong", .expected = "[2]", .got = "[3]", .hint = "look"});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::ST_SHAPE);
    EXPECT_EQ(error.detail().file, "a.safetensors");
    EXPECT_EQ(error.detail().tensor, "q.lora_A");
    EXPECT_STREQ(error.what(),
                 "error[ST_SHAPE] a.safetensors: \"q.lora_A\": wrong: expected [2], got [3]. hint: look");
  }
}

TEST(Error, NamesThePythonException) {
  const Error error(ErrorCode::CF_VALUE, {.problem = "wrong", .got = "3", .python_error = "ValueError"});
  EXPECT_STREQ(error.what(), "error[CF_VALUE]: wrong: got 3 (PEFT raises ValueError)");
}

}  // namespace
}  // namespace peft
