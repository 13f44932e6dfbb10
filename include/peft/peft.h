// peft.cpp: LoRA adapters of Mixture-of-Experts models. Everything a user may include, in the order data passes:
//
//   open ------> describe -> decode -> plan -> execute       and all of it in one step:
//   safetensors  model       layout    plan    execute       verbs
//   config
//   adapter
//
// c.h is the C interface, nn/ the runtime on libtorch.
#pragma once

// clang-format off
#include "peft/version.h"
#include "peft/error.h"
#include "peft/tensor.h"
#include "peft/safetensors.h"
#include "peft/config.h"
#include "peft/adapter.h"
#include "peft/model.h"
#include "peft/layout.h"
#include "peft/plan.h"
#include "peft/weights.h"
#include "peft/engine.h"
#include "peft/execute.h"
#include "peft/verbs.h"
// clang-format on
