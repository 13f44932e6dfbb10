#include "peft/train/batches.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace peft::train {
namespace {

// A generator whose numbers are the same on every machine.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

MicroBatch joined(const std::vector<const Row*>& rows) {
  MicroBatch batch;
  batch.sequences = 1;
  for (const Row* row : rows) {
    batch.ids.insert(batch.ids.end(), row->ids.begin(), row->ids.end());
    batch.labels.insert(batch.labels.end(), row->labels.begin(), row->labels.end());
    batch.documents.insert(batch.documents.end(), row->documents.begin(), row->documents.end());
    batch.predicted += row->predicted();
  }
  batch.tokens = batch.real = static_cast<std::int64_t>(batch.ids.size());
  return batch;
}

}  // namespace

std::vector<std::size_t> shuffled(std::size_t rows, std::uint64_t seed, std::int64_t epoch) {
  std::vector<std::size_t> order(rows);
  std::iota(order.begin(), order.end(), std::size_t{0});
  SplitMix64 random(seed * 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(epoch));
  for (std::size_t last = rows; last > 1; --last) std::swap(order[last - 1], order[random.next() % last]);
  return order;
}

MicroBatch collate(const std::vector<const Row*>& rows) {
  if (!rows.empty() && !rows.front()->documents.empty()) return joined(rows);
  MicroBatch batch;
  batch.sequences = static_cast<std::int64_t>(rows.size());
  bool padded = false;
  for (const Row* row : rows) batch.tokens = std::max(batch.tokens, row->tokens());
  for (const Row* row : rows) padded = padded || row->tokens() < batch.tokens || !row->mask.empty();
  for (const Row* row : rows) {
    const auto room = static_cast<std::size_t>(batch.tokens - row->tokens());
    batch.ids.insert(batch.ids.end(), row->ids.begin(), row->ids.end());
    batch.ids.insert(batch.ids.end(), room, 0);
    batch.labels.insert(batch.labels.end(), row->labels.begin(), row->labels.end());
    batch.labels.insert(batch.labels.end(), room, kIgnored);
    batch.predicted += row->predicted();
    batch.real += row->mask.empty() ? row->tokens() : std::count(row->mask.begin(), row->mask.end(), 1);
    if (!padded) continue;
    if (row->mask.empty())
      batch.mask.insert(batch.mask.end(), row->ids.size(), 1);
    else
      batch.mask.insert(batch.mask.end(), row->mask.begin(), row->mask.end());
    batch.mask.insert(batch.mask.end(), room, 0);
  }
  return batch;
}

Batches::Batches(const Dataset& data, const Options& options)
    : data_(data),
      size_(options.per_device_train_batch_size),
      accumulation_(options.gradient_accumulation_steps * options.world_size),
      micro_per_epoch_(divided_up(static_cast<std::int64_t>(data.rows.size()), size_)),
      steps_per_epoch_(divided_up(micro_per_epoch_, accumulation_)),
      total_(options.max_steps),
      shuffles_(options.shuffle),
      seed_(options.seed) {
  if (total_ == 0)
    total_ = static_cast<std::int64_t>(std::ceil(options.num_train_epochs * static_cast<double>(steps_per_epoch_)));
}

double Batches::epoch_of(std::int64_t steps) const {
  return static_cast<double>(steps) / static_cast<double>(steps_per_epoch_);
}

void Batches::shuffle(std::int64_t epoch) {
  if (epoch_ == epoch) return;
  epoch_ = epoch;
  if (shuffles_) {
    order_ = shuffled(data_.rows.size(), seed_, epoch);
  } else {
    order_.resize(data_.rows.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
  }
}

std::vector<MicroBatch> Batches::of_step(std::int64_t step) {
  shuffle(step / steps_per_epoch_);
  const std::int64_t first = step % steps_per_epoch_ * accumulation_,
                     last = std::min(first + accumulation_, micro_per_epoch_);
  std::vector<MicroBatch> batches;
  for (std::int64_t micro = first; micro < last; ++micro) {
    std::vector<const Row*> rows;
    const auto end = std::min<std::int64_t>((micro + 1) * size_, static_cast<std::int64_t>(order_.size()));
    for (std::int64_t i = micro * size_; i < end; ++i) rows.push_back(&data_.rows[order_[static_cast<std::size_t>(i)]]);
    batches.push_back(collate(rows));
  }
  return batches;
}

}  // namespace peft::train
