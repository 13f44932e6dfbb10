#include "execute/merge_norms.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/system.h"
#include "execute/merge_gains.h"

namespace peft::execution {
namespace {

constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
constexpr std::size_t kLanes = 8;  // sums side by side, so that adding does not wait

double sum_of_squares(const double* values, std::size_t count) {
  double sums[kLanes] = {};
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t c = 0; c < kLanes; ++c) sums[c] += values[i + c] * values[i + c];
  }
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// The matrices of one thread's tensor.
class Norms {
 public:
  // base_norm and delta_norm of each update of a place.
  void measure(const MergedTensor& tensor, std::size_t place, MergedMatrix* results) {
    tiles_.forget();
    tiles_.open(tensor, place, factors_);
    const plan::Lattice& lattice = tiles_.lattice();
    const std::size_t count = tiles_.num_updates();
    const Gains gains = own_gains(tensor);
    double base = 0;
    std::vector<double> deltas(count);
    double* weights = weights_.resize(kTileSize);
    double* changed = changed_.resize(kTileSize);
    for (std::int64_t first = 0; first < lattice.rows.count;) {
      const std::int64_t taken =
          std::min(tiles_.take_rows(first, lattice.rows.count - first), lattice.rows.count - first);
      for (std::int64_t row = 0; row < taken; row += static_cast<std::int64_t>(kTileRows)) {
        const auto rows = std::min(kTileRows, static_cast<std::size_t>(taken - row));
        for (std::int64_t panel = 0; panel * kWidth < lattice.cols.count; ++panel) {
          load_tile(tensor, lattice, first + row, rows, panel, weights, bytes_, scratch_);
          base += sum_of_squares(weights, rows * kPanel);
          for (std::size_t n = 0; n < count; ++n) {
            const double* delta = tiles_.product(n, row, rows, panel);
            alone(n, gains, row, rows, panel, delta, weights, changed);
            deltas[n] += sum_of_squares(changed, rows * kPanel);
          }
        }
      }
      first += taken;
    }
    for (std::size_t n = 0; n < count; ++n) {
      results[n].base_norm = std::sqrt(base);
      results[n].delta_norm = std::sqrt(deltas[n]);
    }
  }

 private:
  // Every gain as if its adapter were the only one: the norms of `best`.
  Gains own_gains(const MergedTensor& tensor) {
    if (tiles_.program().gains.empty()) return {};
    const plan::Lattice& lattice = tiles_.lattice();
    return measure_gains(tensor, tiles_, 0, lattice.swapped ? lattice.cols.count : lattice.rows.count);
  }

  // What update n alone adds to the weights.
  void alone(std::size_t n, const Gains& gains, std::int64_t row, std::size_t rows, std::int64_t panel,
             const double* delta, const double* weights, double* changed) const {
    const double scale = tiles_.update(n).scale;
    for (std::size_t i = 0; i < rows * kPanel; ++i) changed[i] = scale * delta[i];
    const auto& measured = tiles_.program().gains;
    const auto gain = std::find(measured.begin(), measured.end(), n);
    if (gain == measured.end()) return;
    const std::vector<double>& values = gains.values[static_cast<std::size_t>(gain - measured.begin())];
    for (std::size_t i = 0; i < rows * kPanel; ++i) {
      const std::int64_t out =
          tiles_.lattice().swapped
              ? std::min(panel * kWidth + static_cast<std::int64_t>(i % kPanel), tiles_.lattice().cols.count - 1)
              : tiles_.rows_taken_from() + row + static_cast<std::int64_t>(i / kPanel);
      changed[i] = values[static_cast<std::size_t>(out)] * (weights[i] + changed[i]) - weights[i];
    }
  }

  GatherStore factors_;
  Tiles<double> tiles_;
  LineBuffer<double> weights_, changed_;
  LineBuffer<std::byte> bytes_;
  Scratch scratch_;
};

struct Task {
  std::size_t file, tensor;
};

}  // namespace

std::vector<MergedMatrix> merged_norms(const Plan& plan, std::span<const std::size_t> files, int threads) {
  std::vector<MergedMatrix> results;
  std::vector<Task> tasks;
  std::vector<std::size_t> first_of;
  for (const std::size_t f : files) {
    for (std::size_t t = 0; t < plan.files[f].tensors.size(); ++t) {
      const auto& merge = plan.files[f].tensors[t].merge;
      if (!merge || merge->updates.empty()) continue;
      tasks.push_back({f, t});
      first_of.push_back(results.size());
      for (std::size_t u = 0; u < merge->updates.size(); ++u) results.push_back({f, t, u, 0, 0});
    }
  }
  std::vector<std::unique_ptr<Norms>> norms(static_cast<std::size_t>(threads));
  parallel_for(tasks.size(), threads, [&](std::size_t i, int worker) {
    auto& mine = norms[static_cast<std::size_t>(worker)];
    if (!mine) mine = std::make_unique<Norms>();
    const PlannedTensor& planned = plan.files[tasks[i].file].tensors[tasks[i].tensor];
    PlannedTensor alike = planned;  // norms of `best`, whatever the mode
    alike.merge->mode = MergeMode::best;
    const MergedTensor tensor(plan, alike, false);
    std::vector<MergedMatrix> found;
    for (std::size_t p = 0; p < tensor.index().places.size(); ++p) {
      const std::vector<std::uint32_t>& updates = tensor.index().places[p].updates;
      found.assign(updates.size(), {});
      mine->measure(tensor, p, found.data());
      for (std::size_t n = 0; n < updates.size(); ++n) {
        MergedMatrix& result = results[first_of[i] + updates[n]];
        result.base_norm = found[n].base_norm;
        result.delta_norm = found[n].delta_norm;
      }
    }
  });
  return results;
}

}  // namespace peft::execution
