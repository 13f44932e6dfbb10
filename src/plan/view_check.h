// Bounds of views, and errors that say which planned tensor is wrong.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "peft/error.h"
#include "peft/plan.h"

namespace peft::plan {

// One tensor of one file: what a check is about.
class TensorScope {
 public:
  TensorScope(const Plan& plan, const PlannedFile& file, const PlannedTensor& tensor)
      : plan_(plan), file_(file), tensor_(tensor) {}

  // What was got is made into text only when it is needed: a plan has many blocks.
  template <class... Values>
  void require(bool holds, std::string_view problem, fmt::format_string<const Values&...> got = "",
               const Values&... values) const {
    if (holds) return;
    throw Error(ErrorCode::INTERNAL, {.file = file_.name,
                                      .tensor = tensor_.name,
                                      .problem = std::string(problem),
                                      .got = fmt::format(got, values...)});
  }

  // The same of a view: `what` names it, `problem` continues the sentence.
  template <class... Values>
  void require_of(std::string_view what, bool holds, std::string_view problem,
                  fmt::format_string<const Values&...> got = "", const Values&... values) const {
    if (!holds) require(false, fmt::format("{}{}", what, problem), got, values...);
  }

  // The tensor that a view is of. `what` names the view in errors: "a block's source".
  const TensorInfo& tensor_of(const View& view, std::string_view what) const;
  const TensorInfo& source_of(const View& view, std::string_view what) const;  // and its dtype is known
  // Every element of the view is one of the `elements` that its tensor has.
  void check_bounds(const View& view, std::int64_t elements, std::string_view what) const;
  void check_view(const View& view, std::string_view what) const;  // both, for a dtype of whole bytes

  const PlannedTensor& tensor() const { return tensor_; }

 private:
  const Plan& plan_;
  const PlannedFile& file_;
  const PlannedTensor& tensor_;
};

// Elements of a source of `bits` bits that a view may count.
std::int64_t elements_of(const TensorInfo& source, int bits);

}  // namespace peft::plan
