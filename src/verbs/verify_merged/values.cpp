#include "verbs/verify_merged/values.h"

#include <algorithm>

#include "execute/values/dequantise.h"
#include "execute/values/element.h"

namespace peft::verbs {
namespace {

std::int64_t elements_of(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;  // of a checked header
  return count;
}

}  // namespace

MergedModel::MergedModel(const Model& model, const std::string& base, const std::string& merged,
                         const OpenOptions& options)
    : base_(model, base, options), merged_(model, merged, options) {
  sources_.sources = merged_.checkpoint.files();
  for (QuantizedTensor& tensor : merged_.weights.quantized()) {
    if (!tensor.turned) codes_.emplace(std::move(tensor.name), std::move(tensor.codes));
  }
  for (const Site& site : base_.sites) {
    const auto weight = base_.weights.find(site);
    if (!weight) continue;
    for (const WeightPart& part : weight->parts) {
      if (!part.scales) places_[part.name].push_back({site, {}, {}, part.view});
    }
  }
  for (const ModelWeights::Other& other : base_.others) {
    const auto weight = base_.weights.find(other.module, other.parameter);
    if (weight)
      places_[weight->parts.front().name].push_back({{}, other.module, other.parameter, weight->parts.front().view});
  }
}

Counterpart MergedModel::find(const PlannedTensor& tensor) const {
  Counterpart result;
  const auto& all = merged_.checkpoint.tensors();
  const auto* entry = merged_.checkpoint.find(tensor.name);
  if (entry != nullptr && elements_of(entry->tensor->shape) == tensor.rows * tensor.cols) {
    result.direct = entry - all.data();
    result.dtype = entry->tensor->dtype;
    const auto codes = codes_.find(tensor.name);
    if (codes != codes_.end() && tensor.dtype != result.dtype)
      result.codes = &codes->second, result.dtype = Dtype::bf16;
    return result;
  }
  const auto at = places_.find(tensor.name);
  if (at == places_.end()) {
    result.missing.push_back(tensor.name);
    return result;
  }
  for (const Where& where : at->second) {
    auto found = where.parameter.empty() ? merged_.weights.find(where.site)
                                         : merged_.weights.find(where.module, where.parameter);
    const std::string name = where.parameter.empty() ? describe(where.site) : where.module + "." + where.parameter;
    const bool fits = found && found->out * found->in == where.view.rows * where.view.cols;
    if (fits && where.parameter.empty() && found->out != where.view.rows) found.reset();
    if (!fits || !found) {
      result.missing.push_back(name);
      continue;
    }
    result.dtype = found->parts.front().scales ? Dtype::bf16 : merged_.info(*found).dtype;
    result.pieces.push_back({where.view, std::move(*found), name});
  }
  return result;
}

// The value that a merge writes where nothing is added.
double MergedModel::dequantised(const WeightPart& part, std::int64_t row, std::int64_t col) const {
  const Block block{0, 0, 1, part.view, 1, part.scales};
  return execution::rounded_to(Dtype::bf16, execution::value_at(sources_, block, row, col));
}

void MergedModel::read(const Counterpart& counterpart, const PlannedTensor& tensor, std::int64_t first,
                       std::int64_t count, std::vector<double>& values, std::vector<char>& known) const {
  const auto size = static_cast<std::size_t>(count * tensor.cols);
  values.assign(size, 0);
  known.assign(size, counterpart.direct >= 0 ? 1 : 0);
  if (counterpart.codes != nullptr) {
    const std::int64_t width = counterpart.codes->view.cols, begin = first * tensor.cols;
    for (std::size_t i = 0; i < size; ++i) {
      const std::int64_t at = begin + static_cast<std::int64_t>(i);
      values[i] = dequantised(*counterpart.codes, at / width, at % width);
    }
    return;
  }
  if (counterpart.direct >= 0) {
    const Checkpoint::Entry& entry = merged_.checkpoint.tensors()[static_cast<std::size_t>(counterpart.direct)];
    const adapter::Matrix flat = adapter::bind(*merged_.checkpoint.files()[entry.file], *entry.tensor);
    adapter::read(flat.col_range(first * tensor.cols, count * tensor.cols), values);
    return;
  }
  for (const Counterpart::Piece& piece : counterpart.pieces) {
    for (const WeightPart& part : piece.found.parts) {
      const adapter::Matrix matrix = adapter::bind(*merged_.checkpoint.files()[part.view.source], part.view);
      const View place =
          piece.found.out == piece.place.rows ? piece.place.row_range(part.row, part.view.rows) : piece.place;
      std::vector<double> run_values;
      visit_runs(place, tensor.cols, first, count, [&](const ElementRun& run) {
        run_values.resize(static_cast<std::size_t>(run.count));
        const adapter::Matrix line = run.along_row ? matrix.row_range(run.line, 1).col_range(run.begin, run.count)
                                                   : matrix.col_range(run.line, 1).row_range(run.begin, run.count);
        if (!part.scales) adapter::read(line, run_values);
        for (std::int64_t n = 0; part.scales && n < run.count; ++n) {
          const auto at = static_cast<std::size_t>(n);
          run_values[at] =
              run.along_row ? dequantised(part, run.line, run.begin + n) : dequantised(part, run.begin + n, run.line);
        }
        for (std::int64_t n = 0; n < run.count; ++n) {
          const auto at = static_cast<std::size_t>(run.at + n * run.step);
          values[at] = run_values[static_cast<std::size_t>(n)];
          known[at] = 1;
        }
      });
    }
  }
}

std::span<const std::byte> MergedModel::bytes(const Counterpart& counterpart, const PlannedTensor& tensor) const {
  if (counterpart.direct < 0 || counterpart.codes != nullptr || counterpart.dtype != tensor.dtype) return {};
  const Checkpoint::Entry& entry = merged_.checkpoint.tensors()[static_cast<std::size_t>(counterpart.direct)];
  return merged_.checkpoint.files()[entry.file]->bytes(*entry.tensor);
}

std::vector<std::string> MergedModel::extra(const std::vector<Counterpart>& used) const {
  std::set<std::string_view> names;
  const auto& all = merged_.checkpoint.tensors();
  for (const Counterpart& counterpart : used) {
    if (counterpart.direct >= 0) names.insert(all[static_cast<std::size_t>(counterpart.direct)].tensor->name);
    for (const auto& piece : counterpart.pieces) {
      for (const WeightPart& part : piece.found.parts) names.insert(part.name);
    }
  }
  std::vector<std::string> extra;
  for (const Checkpoint::Entry& entry : all) {
    if (!names.contains(entry.tensor->name) && !is_scale(entry.tensor->name)) extra.emplace_back(entry.tensor->name);
  }
  return extra;
}

}  // namespace peft::verbs
