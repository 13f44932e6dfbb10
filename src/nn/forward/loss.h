// The language loss from the last layer's output, for the tokens that are learnt alone and some of them at a time.
#pragma once

#include <cstdint>

#include "nn/forward/pass.h"

namespace peft::nn {

// Throws USAGE for labels of another shape, or outside the vocabulary.
void check_labels(const CausalLM::Impl& model, const ForwardInput& input);

// The rows b * tokens + t of `labels` [sequences, tokens] whose next token is learnt, and that token.
struct LearntRows {
  Tensor rows, next;  // [n] int64, on the labels' device
};
LearntRows learnt_rows(const Tensor& labels, const std::vector<std::int64_t>& documents);

// hidden [n, features] after the last norm, next [n]. Fills in loss, predicted_tokens, correct and entropy.
void add_loss(const Pass& pass, const Tensor& hidden, const Tensor& next, double divisor, ForwardOutput& output);

}  // namespace peft::nn
