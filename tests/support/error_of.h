// What an action throws, for tests of errors.
#pragma once

#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::testing {

// The error that `action` throws. A test failure where it throws none.
template <class Action>
Error error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return {ErrorCode::INTERNAL, {}};
}

}  // namespace peft::testing
