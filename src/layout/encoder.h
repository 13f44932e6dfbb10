// State shared by the parts of encode(): names, dtypes, and the record of what was done.
#pragma once

#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "layout/encode.h"
#include "layout/stack.h"
#include "peft/error.h"

namespace peft::layout {

class Encoder {
 public:
  Encoder(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options)
      : factors_(factors),
        model_(model),
        file_(file),
        options_(options),
        generation_(generation_of(options.to, model)) {
    for (const Experts& experts : model.experts) {
      experts_.emplace(experts.v5_module.empty() ? experts.v4_module : experts.v5_module, &experts);
    }
    for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
  }

  Encoded run();

 private:
  using Group = std::span<const Factor>;  // all factors of one module

  // encode.cpp
  void dense(const Factor& factor);
  void extra(const Extra& extra);
  void experts(Group group);
  const Experts& experts_of(const Factor& factor) const;
  // encode_per_expert.cpp
  void per_expert(const Experts& experts, Group group);
  // encode_fused.cpp
  void fused(const Experts& experts, Group group);
  std::size_t fused_parameter(const std::string& module, const std::string& key, const ExpertsForm::Fused& parameter,
                              std::int64_t experts, Group group);
  std::int64_t count_experts(const Experts& experts, Group group) const;
  void measure(Stack& stack) const;
  void add_stack(const std::string& key, const ExpertsForm::Fused& parameter, Stack& stack);

  std::string dense_name(const std::string& v5_module) const {
    return generation_ == Generation::v4 ? model_.rename(v5_module, Generation::v5, Generation::v4) : v5_module;
  }
  Dtype dtype_of(const View& view) const;
  void add_matrix(std::string name, const View& view);  // a view as a tensor of its own
  void add_whole(std::string name, const View& view);   // the tensor the view is of, in its own shape
  void add_tensor(PlannedTensor tensor, std::span<const Dtype> source_dtypes);
  void add_target(std::string name, bool parameter, std::int64_t rank, double scale) {
    result_.targets.push_back({std::move(name), parameter, rank, scale});
  }
  void note(Exactness exactness) { result_.exactness = std::max(result_.exactness, exactness); }
  void step(const std::string& text) { ++steps_[text]; }
  [[noreturn]] void no_form(const std::string& what, std::string problem, std::string hint) const;

  const Factors& factors_;
  const Model& model_;
  const TensorFile* file_;
  const EncodeOptions& options_;
  Generation generation_;
  std::unordered_map<std::string, const Experts*> experts_;
  std::unordered_map<std::string, std::int64_t> counts_;
  std::map<std::string, int> steps_;  // what was done, how often
  Encoded result_;
};

}  // namespace peft::layout
