// Reads the merged model's values at the places of the tensors that were expected, in whatever form it holds them.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "peft/plan.h"
#include "verbs/model_weights.h"

namespace peft::verbs {

// A run of a view's elements that lie one after the other, `step` apart, in some rows of a tensor.
struct ElementRun {
  bool along_row = true;  // of the view: row `line`, columns [begin, begin + count); else column `line`, rows ...
  std::int64_t line = 0, begin = 0, count = 0;
  std::int64_t at = 0, step = 1;  // index of the first one, counted from the first of the rows
};

// Visits the elements of a view that lie in rows [first, first + count) of a tensor with `cols` columns.
template <class Visit>
void visit_runs(const View& view, std::int64_t cols, std::int64_t first, std::int64_t count, const Visit& visit) {
  // The dimension with the larger stride is the outer one, so that whatever lies elsewhere is skipped at once.
  const bool by_rows = view.row_stride >= view.col_stride;
  const std::int64_t outer = by_rows ? view.rows : view.cols, inner = by_rows ? view.cols : view.rows;
  const std::int64_t outer_stride = std::max<std::int64_t>(1, by_rows ? view.row_stride : view.col_stride);
  const std::int64_t stride = std::max<std::int64_t>(1, by_rows ? view.col_stride : view.row_stride);
  const std::int64_t begin = first * cols, end = (first + count) * cols;
  const auto steps_to = [](std::int64_t distance, std::int64_t step) {
    return distance <= 0 ? 0 : (distance + step - 1) / step;
  };
  const std::int64_t last = std::min(outer, steps_to(end - view.offset, outer_stride));
  for (std::int64_t o = steps_to(begin - (inner - 1) * stride - view.offset, outer_stride); o < last; ++o) {
    const std::int64_t at = view.offset + o * outer_stride;
    const std::int64_t from = steps_to(begin - at, stride), to = std::min(inner, steps_to(end - at, stride));
    if (from < to) visit(ElementRun{by_rows, o, from, to - from, at + from * stride - begin, stride});
  }
}

// Where the merged model has an expected tensor.
struct Counterpart {
  // The whole tensor under the same name: `direct` is its number in checkpoint.tensors(), -1 otherwise.
  std::int64_t direct = -1;
  const WeightPart* codes = nullptr;  // of a direct one that the merged model holds quantised
  // Else matrix by matrix: where it lies in the expected tensor, and where in the merged model.
  struct Piece {
    View place;
    Weight found;
    std::string site;
  };
  std::vector<Piece> pieces;
  std::vector<std::string> missing;  // of the pieces
  Dtype dtype = Dtype::f32;          // of the merged values
};

class MergedModel {
 public:
  MergedModel(const Model& model, const std::string& base, const std::string& merged, const OpenOptions& options);

  // Where the merged model has the tensor, whole or matrix by matrix.
  Counterpart find(const PlannedTensor& tensor) const;
  // Values of rows [first, first + count) of the expected tensor; known[i] is false where the model has none.
  void read(const Counterpart& counterpart, const PlannedTensor& tensor, std::int64_t first, std::int64_t count,
            std::vector<double>& values, std::vector<char>& known) const;
  // Bytes of a tensor that has the same name and dtype; empty otherwise.
  std::span<const std::byte> bytes(const Counterpart& counterpart, const PlannedTensor& tensor) const;
  // Tensors that belong to nothing that was expected.
  std::vector<std::string> extra(const std::vector<Counterpart>& used) const;
  const Checkpoint& checkpoint() const { return merged_.checkpoint; }

 private:
  struct Where {
    Site site;  // or, without one, a parameter
    std::string module, parameter;
    View view;
  };
  double dequantised(const WeightPart& part, std::int64_t row, std::int64_t col) const;

  ModelWeights base_, merged_;
  Plan sources_;                                          // the merged model's files, to read codes and scales through
  std::map<std::string, WeightPart, std::less<>> codes_;  // of the merged model, by tensor
  std::map<std::string, std::vector<Where>, std::less<>> places_;  // by tensor of the base
};

}  // namespace peft::verbs
