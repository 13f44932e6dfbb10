// What a training run tells while it runs, with transformers' names, and where a run is. Needs no tensors.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace peft::train {

// One logged step: means since the last one, except where another thing is said.
struct Metrics {
  std::int64_t step = 0;        // steps done, from 1 on
  double epoch = 0, loss = 0;   // before the step's update
  double grad_norm = 0;         // of this step, before clipping
  double learning_rate = 0;     // of this step
  std::int64_t num_tokens = 0;  // that are not padding, since the start
  double mean_token_accuracy = 0, entropy = 0;
  std::optional<double> aux_loss{};
  double seconds = 0;  // since the start of this process
};
struct Evaluation {
  std::int64_t step = 0;
  double epoch = 0, loss = 0, mean_token_accuracy = 0, entropy = 0, seconds = 0;
};
std::string json_of(const Metrics& metrics);        // one line, without its line feed
std::string json_of(const Evaluation& evaluation);  // eval_loss, ...

// A file of JSON lines. A run that goes on keeps the lines up to the step that it goes on with.
class MetricsFile {
 public:
  MetricsFile(std::string path, std::optional<std::int64_t> goes_on_after);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  void append(const std::string& line);  // flushed. Throws IO_WRITE

 private:
  std::string path_;
  int fd_ = -1;
};

// By layer: how often each expert was chosen by a token that is not padding.
using ExpertTokens = std::map<std::int64_t, std::vector<std::int64_t>>;

// Where a run is, beside the tensors: trainer_state.json of a checkpoint.
struct RunState {
  std::int64_t step = 0, num_tokens = 0;
  // Sums since the last logged step.
  std::int64_t window_steps = 0, window_tokens = 0;
  double window_loss = 0, window_correct = 0, window_entropy = 0, window_aux_loss = 0;
  std::optional<double> best_eval_loss{};
  std::int64_t best_step = 0;
  ExpertTokens expert_tokens{};

  std::string to_json(const std::vector<std::pair<std::string, std::string>>& run) const;
  // Throws RS_JOURNAL for a file that is none, and for one of another run: `run` are names and values that must be the
  // same.
  static RunState from_json(const std::string& file, const std::vector<std::pair<std::string, std::string>>& run);
};

}  // namespace peft::train
