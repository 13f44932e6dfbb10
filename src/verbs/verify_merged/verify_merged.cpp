#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/system.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "verbs/verify_merged/tensor.h"

namespace peft {
namespace {

using verbs::Counterpart;
using verbs::ExpectedTensor;
using verbs::MatrixSums;
using Kind = MergedDifference::Kind;

constexpr std::size_t kReported = 100;
constexpr std::size_t kExplained = 20;  // differences whose adapters are told apart: each reads the matrix again

class Check {
 public:
  explicit Check(const VerifyMergedOptions& options)
      : options_(options),
        plan_(plan_merge(options.merge)),
        expected_(verbs::expected_tensors(plan_)),
        model_(describe({.base = resolve_path(options.merge.base),
                         .family = options.merge.input.family,
                         .families_file = options.merge.input.families_file})),
        merged_(model_, options.merge.base, options.merged, options.merge.input.open) {}

  VerifyMergedReport run() {
    counterparts_.resize(expected_.size());
    sums_.resize(expected_.size());
    parallel_for(expected_.size(), options_.threads == 0 ? thread_count(0) : options_.threads, [&](std::size_t i, int) {
      counterparts_[i] = merged_.find(expected_[i].planned());
      if (counterparts_[i].direct >= 0 || !counterparts_[i].pieces.empty()) {
        sums_[i] = verbs::compare_tensor(expected_[i], merged_, counterparts_[i]);
      }
    });
    for (std::size_t i = 0; i < expected_.size(); ++i) judge(i);
    for (const std::string& name : merged_.extra(counterparts_)) extra(name);
    report_.same = report_.num_differences == 0;
    report_.bound = bound();
    report_.left_out = plan_.unused;
    for (const auto& text : plan_.unused) report_.notes.push_back("left out: " + text);
    if (plan_.own_output) report_.notes.push_back(own_output_text(resolve_path(options_.merge.base) + "/config.json"));
    for (const auto& site : plan_.zero_deltas)
      report_.notes.push_back(site + ": the delta is zero, nothing can be seen of it");
    return std::move(report_);
  }

 private:
  void add(MergedDifference difference) {
    ++report_.num_differences;
    if (report_.differences.size() < kReported) report_.differences.push_back(std::move(difference));
  }

  void judge(std::size_t i) {
    const ExpectedTensor& expected = expected_[i];
    const PlannedTensor& planned = expected.planned();
    ++report_.tensors;
    (planned.merge ? report_.changed : report_.copied) += 1;
    for (const std::string& name : counterparts_[i].missing) {
      add({.tensor = name,
           .site = {},
           .kind = Kind::missing,
           .what = "the merged model has no such tensor, or in another shape",
           .factor = 0,
           .relative = 0,
           .elements = 0});
    }
    for (const MatrixSums& sums : sums_[i]) {
      if (sums.elements == 0) continue;
      if (sums.site) count(sums, planned.name);
      auto difference = verbs::difference_of(sums, planned.name);
      if (!difference) continue;
      if (difference->kind == Kind::changed && expected.replaced) {
        difference->kind = Kind::different;
        difference->what =
            fmt::format("{} of {} elements are not those that an adapter puts in the place of the base's",
                        sums.bounds.beyond, sums.elements);
      }
      if (sums.site) explain(i, *difference);
      add(std::move(*difference));
    }
  }

  void count(const MatrixSums& sums, const std::string& name) {
    report_.bounds.exact += sums.bounds.exact;
    report_.bounds.one_rounding += sums.bounds.one_rounding;
    report_.bounds.two_roundings += sums.bounds.two_roundings;
    report_.bounds.beyond += sums.bounds.beyond;
    if (sums.worst_places <= report_.worst_places) return;
    report_.worst_places = sums.worst_places;
    report_.worst_tensor = sums.site ? describe(*sums.site) : name;
  }

  // Of several adapters: which one is missing, or there twice.
  void explain(std::size_t i, MergedDifference& difference) {
    const auto& adapters = options_.merge.adapters;
    if (adapters.size() < 2 || ++explained_ > kExplained || difference.kind == Kind::not_merged) return;
    if (alone_.empty()) {
      for (const WeightedAdapter& adapter : adapters) {
        MergeOptions one = options_.merge;
        one.adapters = {adapter};
        alone_.push_back(plan_merge(one));
      }
    }
    const auto factors = verbs::factors_of(expected_[i].planned().name, *difference.site, alone_, expected_[i], merged_,
                                           counterparts_[i]);
    if (factors.empty()) return;
    difference.what += "; taken apart:";
    for (std::size_t a = 0; a < factors.size(); ++a) {
      difference.what += fmt::format("{} {} {}", a == 0 ? "" : ",", adapters[a].path, verbs::factor_text(factors[a]));
    }
  }

  // A tied output embedding that is written out all the same says nothing new.
  void extra(const std::string& name) {
    const auto& tree = model_.tree(Generation::v5) ? model_.tree(Generation::v5) : model_.tree(Generation::v4);
    if (model_.tie_word_embeddings && tree && name == tree->output_embedding + ".weight") {
      const auto* output = merged_.checkpoint().find(name);
      const auto* input = merged_.checkpoint().find(tree->input_embedding + ".weight");
      if (output != nullptr && input != nullptr) {
        const auto x = merged_.checkpoint().files()[output->file]->bytes(*output->tensor);
        const auto y = merged_.checkpoint().files()[input->file]->bytes(*input->tensor);
        if (std::ranges::equal(x, y)) {
          report_.notes.push_back(name + " is a copy of the embedding it is tied to");
          return;
        }
      }
    }
    add({.tensor = name,
         .site = {},
         .kind = Kind::extra,
         .what = "neither the base nor an adapter has it",
         .factor = 0,
         .relative = 0,
         .elements = 0});
  }

  std::string bound() const {
    std::set<std::string> dtypes;
    for (std::size_t i = 0; i < expected_.size(); ++i) {
      if (expected_[i].planned().merge && counterparts_[i].missing.empty())
        dtypes.emplace(info(counterparts_[i].dtype).name);
    }
    std::string text = fmt::format("half a last place of {}, and what a sum of the adapters' ranks in F32 may lose",
                                   fmt::join(dtypes, ", "));
    if (report_.bounds.two_roundings > 0) {
      text +=
          "; or, as tools do that round the delta too or store after each adapter, half a last place for each such "
          "rounding";
    }
    return text;
  }

  const VerifyMergedOptions& options_;
  MergePlan plan_;
  std::vector<ExpectedTensor> expected_;
  Model model_;
  verbs::MergedModel merged_;
  std::vector<Counterpart> counterparts_;
  std::vector<std::vector<MatrixSums>> sums_;
  std::vector<MergePlan> alone_;
  std::size_t explained_ = 0;
  VerifyMergedReport report_;
};

// A model that keeps quantised tensors is compared with a merge that keeps them.
bool has_quantized(const std::string& folder, const OpenOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(resolve_path(folder), options);
  return std::any_of(checkpoint.tensors().begin(), checkpoint.tensors().end(), [](const Checkpoint::Entry& entry) {
    return entry.tensor->name.ends_with("_scale_inv") || entry.tensor->name.ends_with("_blocks");
  });
}

}  // namespace

VerifyMergedReport verify_merged(const VerifyMergedOptions& options) {
  for (const std::string& path : {options.merge.base, options.merged}) {
    if (!path.ends_with(".gguf")) continue;
    throw Error(ErrorCode::USAGE, {.problem = "models in GGUF are merged, and not compared with what they should be",
                                   .expected = "model folders with safetensors",
                                   .got = path});
  }
  VerifyMergedOptions used = options;
  used.merge.allow_repeat = true;  // this is about the result, not about the base's past
  used.merge.keep_quantized = has_quantized(options.merged, options.merge.input.open);
  return Check(used).run();
}

}  // namespace peft
