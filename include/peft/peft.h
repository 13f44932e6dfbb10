// peft.cpp: LoRA adapters of Mixture-of-Experts models. Everything a user may include, in the order data passes:
//
//   open -> detect -> decode -> plan -> execute -> write -> verify
//   adapter  layout   layout    plan    execute   execute   verify
#pragma once

#include "peft/adapter.h"
#include "peft/config.h"
#include "peft/convert_for.h"
#include "peft/doctor.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "peft/layout.h"
#include "peft/low_rank.h"
#include "peft/merge.h"
#include "peft/model.h"
#include "peft/plan.h"
#include "peft/reference.h"
#include "peft/safetensors.h"
#include "peft/targets.h"
#include "peft/tensor.h"
#include "peft/verbs.h"
#include "peft/weights.h"
