#include "verbs/merged_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/float_formats.h"
#include "peft/execute.h"
#include "verbs/merged_bounds.h"

namespace peft::verbs {
namespace {

constexpr std::int64_t kElements = 1 << 18;  // of a chunk

// The tensor is a source's tensor as it is, and the merged model has the same bytes.
bool same_copy(const ExpectedTensor& expected, const MergedModel& merged, const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  if (planned.merge || planned.blocks.size() != 1) return false;
  const Block& block = planned.blocks.front();
  const View& view = block.source;
  const TensorFile& file = *expected.merge->plan.sources[view.source];
  const TensorInfo& source = file.tensors()[view.tensor];
  const bool whole = block.scale == 1 && !block.scales && source.dtype == planned.dtype && view.offset == 0 &&
                     view.rows == planned.rows && view.cols == planned.cols &&
                     (view.rows <= 1 || view.row_stride == view.cols) && (view.cols <= 1 || view.col_stride == 1);
  if (!whole) return false;
  const auto found = merged.bytes(counterpart, planned), wanted = file.bytes(source);
  return found.size() == wanted.size() && std::memcmp(found.data(), wanted.data(), found.size()) == 0;
}

void count(MergeBounds& bounds, Fit fit) {
  switch (fit) {
    case Fit::exact:
      ++bounds.exact;
      break;
    case Fit::one_rounding:
      ++bounds.one_rounding;
      break;
    case Fit::two_roundings:
      ++bounds.two_roundings;
      break;
    case Fit::beyond:
      ++bounds.beyond;
      break;
  }
}

class Comparison {
 public:
  Comparison(const ExpectedTensor& expected, const MergedModel& merged, const Counterpart& counterpart)
      : expected_(expected),
        planned_(expected.planned()),
        merged_(merged),
        counterpart_(counterpart),
        evaluator_(expected.merge->plan, expected.file, expected.tensor),
        slack_(expected.merge->plan, planned_),
        dtype_(counterpart.dtype),
        judge_(dtype_, planned_.merge ? planned_.merge->base_dtype : planned_.dtype, slack_),
        precision_(precision_of(dtype_)),
        sums_(expected.sites.size() + 1) {
    for (std::size_t i = 0; i < expected.sites.size(); ++i) sums_[i].site = expected.sites[i].first;
  }

  std::vector<MatrixSums> run() {
    const std::int64_t rows = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, planned_.cols));
    for (std::int64_t first = 0; first < planned_.rows; first += rows)
      chunk(first, std::min(rows, planned_.rows - first));
    return std::move(sums_);
  }

 private:
  void chunk(std::int64_t first, std::int64_t rows) {
    const auto base = evaluator_.base(first, rows), wanted = planned_.merge ? evaluator_.merged(first, rows) : base;
    const Slack slack = slack_.rows(first, rows);
    merged_.read(counterpart_, planned_, first, rows, values_, known_);
    group_.assign(base.size(), static_cast<std::uint32_t>(expected_.sites.size()));
    for (std::size_t s = 0; s < expected_.sites.size(); ++s) {
      visit_runs(expected_.sites[s].second, planned_.cols, first, rows, [&](const Run& run) {
        for (std::int64_t n = 0; n < run.count; ++n)
          group_[static_cast<std::size_t>(run.at + n * run.step)] = static_cast<std::uint32_t>(s);
      });
    }
    for (std::size_t i = 0; i < base.size(); ++i) {
      if (known_[i] != 0) add(sums_[group_[i]], base[i], wanted[i], values_[i], slack.of_sums[i], slack.magnitude[i]);
    }
  }

  void add(MatrixSums& sums, double base, double wanted, double found, double slack, double delta_bound) {
    ++sums.elements;
    if (!std::isfinite(found)) {
      if (std::bit_cast<std::uint64_t>(found) == std::bit_cast<std::uint64_t>(wanted))
        return count(sums.bounds, Fit::exact);
      return count(sums.bounds, Fit::beyond);
    }
    count(sums.bounds, judge_.judge(base, wanted, found, slack, delta_bound));
    const double change = found - base, delta = wanted - base, place = last_place(precision_, found);
    sums.base += base * base;
    sums.change += change * change;
    sums.delta += delta * delta;
    sums.product += change * delta;
    sums.error += (found - wanted) * (found - wanted);
    sums.noise += place * place / 12;
    sums.unchanged += std::abs(change) <= last_place(precision_, base) / 2 ? 1 : 0;
    sums.worst_places = std::max(sums.worst_places, judge_.places(wanted, found));
  }

  const ExpectedTensor& expected_;
  const PlannedTensor& planned_;
  const MergedModel& merged_;
  const Counterpart& counterpart_;
  Evaluator evaluator_;
  SlackOf slack_;
  Dtype dtype_;
  Judge judge_;
  Precision precision_;
  std::vector<MatrixSums> sums_;
  std::vector<double> values_;
  std::vector<char> known_;
  std::vector<std::uint32_t> group_;
};

const ExpectedTensor* named(const std::vector<ExpectedTensor>& tensors, const std::string& name) {
  const auto at =
      std::find_if(tensors.begin(), tensors.end(), [&](const ExpectedTensor& t) { return t.planned().name == name; });
  return at == tensors.end() ? nullptr : &*at;
}

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const MergePlan& merge) {
  std::vector<ExpectedTensor> tensors;
  std::map<std::pair<std::size_t, std::size_t>, std::size_t> numbers;
  for (std::size_t f = 0; f < merge.plan.files.size(); ++f) {
    for (std::size_t t = 0; t < merge.plan.files[f].tensors.size(); ++t) {
      numbers[{f, t}] = tensors.size();
      tensors.push_back({&merge, f, t, {}, false});
    }
  }
  for (const MergedPart& part : merge.parts) {
    ExpectedTensor& tensor = tensors[numbers.at({part.file, part.tensor})];
    tensor.replaced |= part.update < 0;
    if (part.update < 0) continue;
    const View& target = tensor.planned().merge->updates[static_cast<std::size_t>(part.update)].target;
    const bool known =
        std::any_of(tensor.sites.begin(), tensor.sites.end(), [&](const auto& site) { return site.second == target; });
    if (!known) tensor.sites.emplace_back(part.site, target);
  }
  return tensors;
}

std::vector<MatrixSums> compare_tensor(const ExpectedTensor& expected, const MergedModel& merged,
                                       const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  if (same_copy(expected, merged, counterpart)) return {};
  if (!is_float(counterpart.dtype) || !is_float(planned.dtype)) {  // numbers that nothing is computed with
    MatrixSums sums;
    sums.elements = sums.bounds.beyond = static_cast<std::uint64_t>(planned.rows * planned.cols);
    return {sums};
  }
  return Comparison(expected, merged, counterpart).run();
}

std::vector<double> factors_of(const std::string& tensor, const std::string& site, std::span<const MergePlan> alone,
                               const ExpectedTensor& expected, const MergedModel& merged,
                               const Counterpart& counterpart) {
  const PlannedTensor& planned = expected.planned();
  const auto place =
      std::find_if(expected.sites.begin(), expected.sites.end(), [&](const auto& s) { return s.first == site; });
  if (place == expected.sites.end()) return {};
  const std::size_t n = alone.size();
  std::vector<std::vector<double>> gram(n, std::vector<double>(n));
  std::vector<double> right(n);
  std::vector<std::optional<Evaluator>> evaluators(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto tensors = expected_tensors(alone[i]);
    const ExpectedTensor* found = named(tensors, tensor);
    if (found != nullptr && found->planned().merge) evaluators[i].emplace(alone[i].plan, found->file, found->tensor);
  }
  const std::int64_t rows = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, planned.cols));
  std::vector<double> values;
  std::vector<char> known;
  const Evaluator whole(expected.merge->plan, expected.file, expected.tensor);
  for (std::int64_t first = 0; first < planned.rows; first += rows) {
    const std::int64_t count = std::min(rows, planned.rows - first);
    const auto base = whole.base(first, count);
    merged.read(counterpart, planned, first, count, values, known);
    std::vector<std::vector<double>> deltas(n, std::vector<double>(base.size()));
    for (std::size_t i = 0; i < n; ++i) {
      if (!evaluators[i]) continue;
      deltas[i] = evaluators[i]->merged(first, count);
      for (std::size_t k = 0; k < base.size(); ++k) deltas[i][k] -= base[k];
    }
    visit_runs(place->second, planned.cols, first, count, [&](const Run& run) {
      for (std::int64_t m = 0; m < run.count; ++m) {
        const auto at = static_cast<std::size_t>(run.at + m * run.step);
        if (known[at] == 0) continue;
        for (std::size_t i = 0; i < n; ++i) {
          right[i] += (values[at] - base[at]) * deltas[i][at];
          for (std::size_t j = 0; j < n; ++j) gram[i][j] += deltas[i][at] * deltas[j][at];
        }
      }
    });
  }
  return solve(std::move(gram), std::move(right));
}

}  // namespace peft::verbs
