#include "cli/report/data.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "base/text.h"
#include "cli/output/output.h"

namespace peft::cli {
namespace {

std::vector<std::string_view> split(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t dot = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, dot - begin));
    begin = dot + 1;
  }
  return parts;
}

std::int64_t number_in(std::string_view text) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : -1;
}

template <class T>
std::string listed(const std::set<T>& values) {
  constexpr std::size_t kShown = 4;
  std::string text;
  std::size_t count = 0;
  for (const T& value : values) {
    if (++count > kShown) return text + ", ...";
    if constexpr (std::is_same_v<T, double>)
      text += (text.empty() ? "" : ", ") + short_number(value);
    else
      text += fmt::format("{}{}", text.empty() ? "" : ", ", value);
  }
  return text;
}

struct Words {
  std::set<std::string> rules;
  std::set<std::int64_t> ranks;
  std::set<double> scales;
};

using Key = std::pair<std::size_t, std::size_t>;

void spread(ReportData& data, const SitePlace& place, const Change& change) {
  data.all.add(change);
  if (place.expert >= 0) {
    data.experts[{place.layer, place.expert}].add(change);
    data.most_experts = std::max(data.most_experts, place.expert + 1);
    return;
  }
  if (std::find(data.dense_names.begin(), data.dense_names.end(), place.part) == data.dense_names.end())
    data.dense_names.push_back(place.part);
  data.dense[place.layer][place.part].add(change);
}

void summarise(ReportData& data) {
  std::vector<double> changes;
  for (const ReportTensor& tensor : data.tensors) {
    if (tensor.change.relative() > 0) changes.push_back(tensor.change.relative());
  }
  if (changes.empty()) return;
  std::sort(changes.begin(), changes.end());
  data.least = changes.front();
  data.most = changes.back();
  data.median = changes[changes.size() / 2];
}

}  // namespace

double Change::relative() const { return base > 0 ? std::sqrt(delta / base) : 0; }

void Change::add(const Change& other) {
  base += other.base;
  delta += other.delta;
  matrices += other.matrices;
}

SitePlace place_of(const Site& site) {
  SitePlace place;
  place.expert = site.expert;
  const auto path = split(site.module);
  for (std::size_t i = 0; i + 1 < path.size() && place.layer < 0; ++i) place.layer = number_in(path[i]);
  if (site.projection != Projection::none)
    place.part = name(site.projection);
  else
    place.part = site.parameter.empty() || site.parameter == "weight" ? path.back() : site.parameter;
  return place;
}

ReportData report_data(const MergePlan& merge, const ExecuteReport& done) {
  std::map<std::tuple<std::size_t, std::size_t, std::size_t>, const MergedMatrix*> measured;
  for (const MergedMatrix& matrix : done.merged) measured[{matrix.file, matrix.tensor, matrix.update}] = &matrix;
  ReportData data;
  std::map<Key, std::size_t> rows;
  std::map<Key, Words> words;
  std::map<std::pair<Key, Site>, bool> counted;  // a matrix under several adapters has one base
  for (const MergedPart& part : merge.parts) {
    const Key key{part.file, part.tensor};
    const PlannedTensor& planned = merge.plan.files[part.file].tensors[part.tensor];
    const auto [at, is_new] = rows.try_emplace(key, data.tensors.size());
    if (is_new) data.tensors.push_back({planned.name, std::string(type_name(planned)), {}, {}, {}, {}});
    Words& said = words[key];
    said.rules.insert(std::string(name(part.rule)) + (part.dora ? " (DoRA)" : ""));
    if (part.update < 0) continue;
    said.ranks.insert(part.rank);
    said.scales.insert(part.scale);
    const auto norms = measured.find({part.file, part.tensor, static_cast<std::size_t>(part.update)});
    if (norms == measured.end()) continue;
    const double base = norms->second->base_norm, delta = norms->second->delta_norm;
    const bool first = counted.try_emplace({key, part.site}, true).second;
    const Change change{first ? base * base : 0, delta * delta, first ? 1 : 0};
    data.tensors[at->second].change.add(change);
    spread(data, place_of(part.site), change);
  }
  for (const auto& [key, row] : rows) {
    ReportTensor& tensor = data.tensors[row];
    tensor.rules = listed(words[key].rules);
    tensor.ranks = listed(words[key].ranks);
    tensor.scales = listed(words[key].scales);
  }
  std::stable_sort(data.tensors.begin(), data.tensors.end(),
                   [](const ReportTensor& x, const ReportTensor& y) { return natural_less(x.name, y.name); });
  summarise(data);
  return data;
}

}  // namespace peft::cli
