// peft train --report: one page that says how a training run went.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/report/html.h"
#include "peft/train/metrics.h"

namespace peft::cli {

struct TrainSample {
  std::string beginning, before, after;
};

struct TrainReport {
  std::string base = {}, data = {}, out = {};
  std::string finished = {};  // "2026-11-25 21:40:12 UTC"
  std::vector<train::Metrics> metrics = {};
  std::vector<train::Evaluation> evaluations = {};
  train::ExpertTokens expert_tokens = {};
  LayerCells norms = {};  // of scale * B * A
  std::vector<TrainSample> samples = {};
  std::int64_t steps = 0, trainable = 0;
  double seconds = 0;
  std::vector<std::string> warnings = {};
};
// Texts are untrusted: all are escaped. Nothing in the page is loaded from elsewhere.
std::string train_page(const TrainReport& report);
// Throws IO_WRITE.
void write_train_page(const std::string& file, const TrainReport& report);

}  // namespace peft::cli
