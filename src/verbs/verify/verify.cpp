#include "verbs/verify/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <set>
#include <span>
#include <tuple>

#include "adapter/view_math.h"
#include "base/float_formats.h"
#include "base/system.h"
#include "base/text.h"
#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "verbs/load.h"
#include "verbs/verify/factors.h"
#include "verbs/verify/rounding.h"

namespace peft {
namespace verbs {
namespace {

constexpr std::size_t kListed = 50;    // differences in the report
constexpr std::int64_t kBlock = 4096;  // elements of a carried tensor that are read at a time

struct ExtraPair {
  const Extra* x = nullptr;
  const Extra* y = nullptr;
};

// What is compared in one go: the factors of one module, or one tensor that is carried along.
struct Job {
  std::vector<FactorPair> factors;
  ExtraPair extra;
  std::vector<Verdict> verdicts;
  std::exception_ptr error;
};

// Walks two lists in order of their keys and gives what belongs together; null for what only one list has.
template <class T, class Key, class Body>
void match_up(const std::vector<T>& xs, const std::vector<T>& ys, Key key, Body body) {
  const auto sorted = [&key](const std::vector<T>& list) {
    std::vector<const T*> order;
    for (const T& item : list) order.push_back(&item);
    std::stable_sort(order.begin(), order.end(), [&key](const T* l, const T* r) { return key(*l) < key(*r); });
    return order;
  };
  const std::vector<const T*> left = sorted(xs), right = sorted(ys);
  std::size_t i = 0, j = 0;
  while (i < left.size() || j < right.size()) {
    const bool take_x = j == right.size() || (i < left.size() && !(key(*right[j]) < key(*left[i])));
    const bool take_y = i == left.size() || (j < right.size() && !(key(*left[i]) < key(*right[j])));
    body(take_x ? left[i] : nullptr, take_y ? right[j] : nullptr);
    i += take_x ? 1 : 0;
    j += take_y ? 1 : 0;
  }
}

std::vector<Job> make_jobs(const Factors& x, const Factors& y) {
  std::vector<Job> jobs;
  std::string module;
  match_up(
      x.factors, y.factors, [](const Factor& f) { return f.site; },
      [&](const Factor* fx, const Factor* fy) {
        const std::string& here = (fx != nullptr ? fx : fy)->site.module;
        if (jobs.empty() || here != module) jobs.emplace_back();
        module = here;
        jobs.back().factors.push_back({fx, fy});
      });
  match_up(
      x.extras, y.extras, [](const Extra& e) { return std::tuple(e.site, e.kind, e.suffix); },
      [&](const Extra* ex, const Extra* ey) {
        jobs.emplace_back().extra = {ex, ey};
      });
  return jobs;
}

// A vector may be stored with further dimensions of 1, as some programs write DoRA magnitudes.
bool same_shape(const TensorInfo& x, const TensorInfo& y) {
  const auto significant = [](std::span<const std::int64_t> shape) {
    std::vector<std::int64_t> rest(shape.begin(), shape.end());
    std::erase(rest, 1);
    return rest;
  };
  return significant(x.shape) == significant(y.shape);
}

struct Distance {
  Match match;
  double relative = 0;
  std::int64_t first = -1;  // index of the first element that differs
};

Distance measure(const adapter::Matrix& x, const adapter::Matrix& y) {
  Distance result;
  double sum_x = 0, sum_y = 0, sum_difference = 0;
  std::array<double, kBlock> vx, vy;
  for (std::int64_t begin = 0; begin < x.cols; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, x.cols - begin);
    adapter::read(x.col_range(begin, count), vx);
    adapter::read(y.col_range(begin, count), vy);
    const auto size = static_cast<std::size_t>(count);
    result.match &= match({vx.data(), size}, {x.dtype, 1}, {vy.data(), size}, {y.dtype, 1});
    for (std::size_t i = 0; i < size; ++i) {
      const double difference = vx[i] - vy[i];
      if (difference != 0 && result.first < 0) result.first = begin + static_cast<std::int64_t>(i);
      sum_x += vx[i] * vx[i], sum_y += vy[i] * vy[i], sum_difference += difference * difference;
    }
  }
  const double ratio = std::sqrt(sum_difference / std::max(sum_x, sum_y));
  result.relative = result.match.exact ? 0 : std::isfinite(ratio) ? ratio : 1;
  return result;
}

// Tensors that are carried along whole: DoRA magnitudes, biases, saved modules, token deltas. Equal values are bit- or
// value-exact; another dtype and one rounding to the coarser one is rounded; anything else is different.
Verdict compare_tensors(const TensorFile& file_x, const TensorInfo& x, const TensorFile& file_y, const TensorInfo& y) {
  if (!same_shape(x, y))
    return {Exactness::lossy, 1, fmt::format("shape {} and {}", shape_text(x.shape), shape_text(y.shape))};
  const adapter::Matrix mx = adapter::bind(file_x, x), my = adapter::bind(file_y, y);
  if (adapter::equal(mx, my)) return {};
  if (!is_float(x.dtype) || !is_float(y.dtype)) {
    return {Exactness::lossy, 1, fmt::format("the bytes differ ({} and {})", x.dtype_name, y.dtype_name)};
  }
  const Distance distance = measure(mx, my);
  if (distance.match.exact) return {Exactness::value_exact, 0, "equal values"};
  if (distance.match.near) return {Exactness::rounded, distance.relative, "equal up to one rounding of each element"};
  return {Exactness::lossy, distance.relative, fmt::format("the first difference is at element {}", distance.first)};
}

// The value as JSON text; "null" for all that says nothing.
std::string telling_value(const config::PeftKey& row, const pythonic::Json& object) {
  const auto found = object.find(row.key);
  return found != object.end() && config::tells(row, *found) ? pythonic::dump_python(*found, -1) : "null";
}

struct ConfigDifference {
  std::string key, what;
};

// Fields that verify uses and that no factor shows: alora_invocation_tokens, layer_replication, arrow_config.
std::vector<ConfigDifference> compare_configs(const AdapterConfig& a, const AdapterConfig& b) {
  const pythonic::Json of_a = config::object_of(a), of_b = config::object_of(b);
  std::vector<ConfigDifference> differences;
  for (const config::PeftKey& row : config::peft_keys()) {
    // What has a field of AdapterConfig is in the factors already: a scale, a rank, a bias.
    if (!row.used.contains(Verb::verify) || config::find_adapter_field(row.key) != nullptr) continue;
    const std::string x = telling_value(row, of_a), y = telling_value(row, of_b);
    if (x != y)
      differences.push_back({std::string(row.key), fmt::format("{} in the first config, {} in the second", x, y)});
  }
  return differences;
}

// The tensors of one file that a job reads: mapped ahead, checked for NaN and infinity, given back afterwards.
class TensorsInUse {
 public:
  TensorsInUse(const TensorFile& file, const std::set<std::uint32_t>& tensors) : file_(file) {
    for (const std::uint32_t index : tensors) {
      if (index >= file.tensors().size()) continue;  // bind() reports it
      const TensorInfo& tensor = file.tensors()[index];
      if (!ranges_.empty() && ranges_.back().second == tensor.begin)
        ranges_.back().second = tensor.end;
      else
        ranges_.emplace_back(tensor.begin, tensor.end);
    }
    for (const auto& [begin, end] : ranges_) file_.prefetch(begin, end);
    for (const std::uint32_t index : tensors) {
      if (index < file.tensors().size()) adapter::require_finite(file, file.tensors()[index]);
    }
  }
  ~TensorsInUse() {
    for (const auto& [begin, end] : ranges_) file_.release(begin, end);
  }
  TensorsInUse(const TensorsInUse&) = delete;
  TensorsInUse& operator=(const TensorsInUse&) = delete;

 private:
  const TensorFile& file_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_;
};

void run(Job& job, const TensorFile& file_x, const TensorFile& file_y) {
  std::set<std::uint32_t> used_x, used_y;
  for (const FactorPair& pair : job.factors) {
    if (pair.x != nullptr) used_x.insert({pair.x->a.tensor, pair.x->b.tensor});
    if (pair.y != nullptr) used_y.insert({pair.y->a.tensor, pair.y->b.tensor});
  }
  const auto [ex, ey] = job.extra;
  if (ex != nullptr) used_x.insert(ex->tensor);
  if (ey != nullptr) used_y.insert(ey->tensor);
  const TensorsInUse tensors_x(file_x, used_x), tensors_y(file_y, used_y);

  if (!job.factors.empty()) {
    job.verdicts = compare_factors(job.factors, file_x, file_y);
  } else if (ex != nullptr && ey != nullptr) {
    job.verdicts = {compare_tensors(file_x, file_x.tensors()[ex->tensor], file_y, file_y.tensors()[ey->tensor])};
  } else {
    job.verdicts = {{Exactness::lossy, 1, ey == nullptr ? "only in the first adapter" : "only in the second adapter"}};
  }
}

// Every job before the first that fails runs to its end, so that the error does not depend on the number of threads.
void run_all(std::vector<Job>& jobs, const TensorFile& file_x, const TensorFile& file_y, int threads) {
  std::atomic<std::size_t> failed = jobs.size();
  parallel_for(jobs.size(), thread_count(threads), [&](std::size_t index, int) {
    if (index > failed) return;
    try {
      run(jobs[index], file_x, file_y);
    } catch (...) {
      jobs[index].error = std::current_exception();
      std::size_t lowest = failed;
      while (index < lowest && !failed.compare_exchange_weak(lowest, index)) {
      }
    }
  });
  for (const Job& job : jobs) {
    if (job.error) std::rethrow_exception(job.error);
  }
}

// Collects verdicts into the report.
class Summary {
 public:
  explicit Summary(bool tolerance_rounded) : limit_(tolerance_rounded ? Exactness::rounded : Exactness::value_exact) {}

  // `of`: what was compared; its text and number are taken from the verdict.
  void add(VerifyDifference of, const Verdict& verdict, const FactorPair& pair) {
    ++report_.compared;
    ++counts_[static_cast<std::size_t>(verdict.exactness)];
    report_.exactness = std::max(report_.exactness, verdict.exactness);
    const bool alone = (pair.x == nullptr) != (pair.y == nullptr);
    if (alone && verdict.exactness == Exactness::value_exact) ++zero_alone_;
    if (verdict.relative > report_.largest_relative) {
      report_.largest_relative = verdict.relative;
      report_.where = of.name;
    }
    if (verdict.bound > 0 && verdict.exactness == Exactness::rounded) note_basis(of.name, verdict);
    of.what = verdict.what, of.relative = verdict.relative;
    if (verdict.exactness > limit_) found_.push_back({std::move(of), pair});
  }

  VerifyReport finish(const Input& a, const Input& b) {
    report_.identical = counts_[0];
    report_.num_differences = static_cast<std::int64_t>(found_.size());
    report_.same = found_.empty() && report_.compared > 0;
    std::stable_sort(found_.begin(), found_.end(),
                     [](const Found& l, const Found& r) { return l.difference.relative > r.difference.relative; });
    if (found_.size() > kListed) found_.resize(kListed);
    for (Found& found : found_) {
      name_twin(found, a, b);
      report_.differences.push_back(std::move(found.difference));
    }
    add_notes(a, b);
    return std::move(report_);
  }

 private:
  struct Found {
    VerifyDifference difference;
    FactorPair pair;
  };

  static void name_twin(Found& found, const Input& a, const Input& b) {
    if (found.pair.x == nullptr) return;
    const auto* twin = find_twin(*found.pair.x, *a.adapter.weights, b.reading.factors.factors, *b.adapter.weights);
    if (twin != nullptr)
      found.difference.what += "; what the first adapter has here, the second has at " + describe(twin->site);
  }

  void note_basis(const std::string& site, const Verdict& verdict) {
    ++other_basis_;
    if (verdict.relative * nearest_.bound < nearest_.relative * verdict.bound) return;
    nearest_ = verdict;
    nearest_site_ = site;
  }

  void add_notes(const Input& a, const Input& b) {
    const auto note = [this](std::string text) { report_.notes.push_back(std::move(text)); };
    if (a.reading.has_experts && b.reading.has_experts && a.reading.layout != b.reading.layout) {
      note(fmt::format("layouts: {} and {}", info(a.reading.layout).name, info(b.reading.layout).name));
    }
    for (const auto& [which, input] : {std::pair("first", &a), std::pair("second", &b)}) {
      if (const auto text = left_out(input->reading); !text.empty()) note(fmt::format("{} adapter: {}", which, text));
      for (const auto& text : input->reading.unused)
        report_.left_out.push_back(fmt::format("{} adapter: {}", which, text));
    }
    if (zero_alone_ > 0) note(fmt::format("{} factors are zero in one adapter and absent in the other", zero_alone_));
    if (other_basis_ > 0) {
      note(fmt::format(
          "{} of {} are the same update in another basis, within one rounding (bound {:.2g}, measured {:.2g}, "
          "at {})",
          other_basis_, report_.compared, nearest_.bound, nearest_.relative, nearest_site_));
    }
    if (const auto n = counts_[static_cast<std::size_t>(Exactness::rounded)] - other_basis_; n > 0) {
      note(fmt::format(
          "{} of {} agree only up to one rounding (2^-24, 2^-11, 2^-8 for F32, F16, BF16, of the coarser dtype)", n,
          report_.compared));
    }
    if (report_.compared == 0) note("there was nothing to compare");
  }

  Exactness limit_;
  VerifyReport report_;
  std::vector<Found> found_;
  std::int64_t counts_[4] = {};
  std::int64_t zero_alone_ = 0;
  std::int64_t other_basis_ = 0;
  Verdict nearest_;  // of those in another basis, the one nearest to its bound
  std::string nearest_site_;
};

}  // namespace

VerifyReport compare(const Input& a, const Input& b, const VerifyOptions& options) {
  const TensorFile &file_a = *a.adapter.weights, &file_b = *b.adapter.weights;
  std::vector<Job> jobs = make_jobs(a.reading.factors, b.reading.factors);
  run_all(jobs, file_a, file_b, options.threads);
  file_a.check_unchanged();
  file_b.check_unchanged();

  using Kind = VerifyDifference::Kind;
  Summary summary(options.tolerance_rounded);
  for (const Job& job : jobs) {
    for (std::size_t i = 0; i < job.factors.size(); ++i) {
      const FactorPair& pair = job.factors[i];
      const Site& site = (pair.x != nullptr ? pair.x : pair.y)->site;
      summary.add({Kind::update, site, describe(site), {}, 0}, job.verdicts[i], pair);
    }
    if (const Extra* extra = job.extra.x != nullptr ? job.extra.x : job.extra.y; extra != nullptr) {
      summary.add({Kind::tensor, extra->site, describe(extra->site) + "." + extra->suffix, {}, 0}, job.verdicts.front(),
                  {});
    }
  }
  for (auto& [key, what] : compare_configs(a.adapter.config, b.adapter.config)) {
    summary.add({Kind::config, {}, std::move(key), {}, 0}, {Exactness::lossy, 1, std::move(what)}, {});
  }
  return summary.finish(a, b);
}

}  // namespace verbs

VerifyReport verify(const std::string& a, const std::string& b, const VerifyOptions& options) {
  verbs::AdapterToLoad adapters[] = {{a, options.a}, {b, options.b}};
  for (auto& adapter : adapters) adapter.options.read.verb = Verb::verify;
  const std::vector<Input> inputs = verbs::load_together(adapters);
  return verbs::compare(inputs[0], inputs[1], options);
}

}  // namespace peft
