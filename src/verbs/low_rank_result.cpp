#include "verbs/low_rank_result.h"

namespace peft::verbs {

void record(LowRankResult& result, const Unit& unit, std::int64_t rank, double norm, double error) {
  if (rank == 0) {
    result.left_out.push_back(unit.name());
    return;
  }
  result.sites.push_back({unit.name(), rank, norm, norm == 0 ? 0 : error / norm});
}

void summarise(LowRankResult& result) {
  for (const LowRankSite& site : result.sites) {
    if (site.relative > result.worst || result.where.empty()) {
      result.worst = site.relative;
      result.where = site.site;
    }
    result.mean += site.relative / static_cast<double>(result.sites.size());
  }
}

}  // namespace peft::verbs
