// The files of an adapter in a layout: the adapter_config.json that belongs to encoded factors, beside their weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "layout/encode/encoded.h"
#include "peft/config.h"
#include "peft/plan.h"

namespace peft::layout {

// Adds the weights file and the config that belongs to it, under the names that the layout's program looks for, and the
// encoder's steps and warnings. `source` is the config of the adapter that was read.
void add_adapter_files(Plan& plan, Encoded encoded, const AdapterConfig& source, const Model& model, Layout to);

// Adds these tensors under the file names that the layout's program looks for.
void add_weights(Plan& plan, std::vector<PlannedTensor> tensors, Layout to);

// Of PEFT's layouts: `source` with targets, ranks, alphas and generation replaced so that PEFT builds exactly the
// wrappers of `encoded`. Everything else is kept. `warnings` gets what could not be kept.
AdapterConfig write_config(const AdapterConfig& source, const Encoded& encoded, const Model& model, Layout to,
                           std::vector<std::string>& warnings);

// The alpha that gives `scale` at this rank, in its shortest form: 10, not 10.000000000000002.
Number alpha_for_scale(double scale, std::int64_t rank, bool use_rslora);

// ---- Short names for lists of modules

// For each of `wanted` (a subset of `all`) the shortest dotted suffix that no name of `all` outside `wanted` has;
// names that share one are listed once. Sorted. See config::is_named_by for PEFT's rule; an entry that equals a whole
// name also stands for that name.
std::vector<std::string> shortest_suffixes(const std::vector<std::string_view>& wanted,
                                           const std::vector<std::string_view>& all);

// name -> value, as few patterns as possible: the shortest suffix whose names all have the same value. Names with the
// value `otherwise` need none. Two patterns never match one name, so their order does not matter.
struct NamedValue {
  std::string_view name;
  double value;
};
std::vector<NamedValue> shortest_patterns(const std::vector<NamedValue>& values, double otherwise);

}  // namespace peft::layout
