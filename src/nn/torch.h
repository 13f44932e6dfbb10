// What src/nn uses of libtorch; precompiled.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#if !defined(INTRA_OP_PARALLEL) && !defined(PEFT_NO_OPENMP)
#error "at::parallel_for would run on one thread: the build has to give -fopenmp"
#endif
