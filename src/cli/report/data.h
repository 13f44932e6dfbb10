// A merge's norms, laid out as the report shows them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "peft/execute.h"
#include "peft/verbs.h"

namespace peft::cli {

// Sums of squares, so that matrices add up.
struct Change {
  double base = 0, delta = 0;
  std::int64_t matrices = 0;
  double relative() const;  // ||delta|| / ||base||
  void add(const Change& other);
};

struct ReportTensor {
  std::string name, dtype, rules, ranks, scales;
  Change change;
};

struct ReportData {
  std::vector<ReportTensor> tensors;                                // that changed, layer 10 after layer 9
  std::map<std::pair<std::int64_t, std::int64_t>, Change> experts;  // by layer and expert
  std::map<std::int64_t, std::map<std::string, Change>> dense;      // by layer and module; layer -1: outside of layers
  std::vector<std::string> dense_names;                             // columns, in the order of the model
  std::int64_t most_experts = 0;
  Change all;
  double least = 0, most = 0, median = 0;  // of the tensors' relative changes, zeros left out
};
ReportData report_data(const MergePlan& merge, const ExecuteReport& done);

// Where a site is in the picture of a model: "model.layers.3.mlp.experts.7.gate" -> 3, 7, "gate"; -1 where there is
// none.
struct SitePlace {
  std::int64_t layer = -1, expert = -1;
  std::string part;
};
SitePlace place_of(const Site& site);

}  // namespace peft::cli
