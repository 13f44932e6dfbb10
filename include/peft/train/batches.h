// The batches of each training step, from rows of token ids. Needs no tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "peft/train/data.h"
#include "peft/train/options.h"

namespace peft::train {

// Some sequences of equal length; shorter rows are filled up on the right.
struct MicroBatch {
  std::int64_t sequences = 0, tokens = 0;
  std::vector<std::int64_t> ids, labels, mask;  // [sequences * tokens]; mask is empty where nothing is padding
  std::vector<std::int64_t> documents;          // of packed rows, which lie one after the other in one sequence
  std::int64_t predicted = 0, real = 0;         // tokens that are learnt; tokens that are not padding
};
MicroBatch collate(const std::vector<const Row*>& rows);

// Which rows a step trains on. A function of the options and the step alone, so that a run can go on anywhere.
class Batches {
 public:
  Batches(const Dataset& data, const Options& options);  // `data` must outlive it

  std::int64_t steps_per_epoch() const { return steps_per_epoch_; }
  std::int64_t total_steps() const { return total_; }
  double epoch_of(std::int64_t steps) const;  // how many epochs so many steps are
  // The micro batches of step 0, 1, ... of all processes: rank r computes r, r + world_size, ... Those of the last step
  // of an epoch may be fewer, and the last one smaller.
  std::vector<MicroBatch> of_step(std::int64_t step);

 private:
  void shuffle(std::int64_t epoch);

  const Dataset& data_;
  std::int64_t size_, accumulation_, micro_per_epoch_, steps_per_epoch_, total_;
  bool shuffles_;
  std::uint64_t seed_;
  std::int64_t epoch_ = -1;  // whose order is in order_
  std::vector<std::size_t> order_;
};

// The order of epoch 0, 1, ...: Fisher and Yates from the last place down, with SplitMix64 seeded by
// seed * 0x9E3779B97F4A7C15 + epoch.
std::vector<std::size_t> shuffled(std::size_t rows, std::uint64_t seed, std::int64_t epoch);

}  // namespace peft::train
