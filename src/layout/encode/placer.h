// Where the factors of a fused pair go in its two tensors.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "layout/encode/stack.h"
#include "layout/forms.h"
#include "plan/members.h"

namespace peft::layout {

// Puts the factors of a stack into the two tensors of a fused pair, in the orientation of the layout. All experts of a
// projection are the members of one block, as far as their scales are equal.
class Placer {
 public:
  // `alternate`: the rows of the natural B are those of gate and up in turn.
  Placer(const Stack& stack, const TensorFile* file, Orientation orientation, BPacking packing, bool alternate)
      : stack_(stack),
        file_(file),
        natural_(orientation == Orientation::natural),
        rank_major_(packing == BPacking::rank_major),
        alternate_(alternate) {}

  void place(const ExpertsForm::Fused& parameter);
  std::int64_t components() const { return stack_.experts * stack_.rank; }
  // How many rows of the columns tensor are one row of its planned matrix: two where rows alternate.
  std::int64_t rows_at_once() const { return alternate_ && natural_ ? 2 : 1; }
  std::int64_t stacked_width() const { return natural_ ? stack_.dims.in : stack_.dims.out; }
  std::int64_t columns_height() const { return natural_ ? stack_.dims.out : stack_.dims.in; }

  std::vector<Block> stacked, columns;  // of lora_A and lora_B

 private:
  using Members = std::vector<plan::MemberView>;

  void place_shared(const ExpertsForm::Fused& parameter);
  // `rank_at`: first of the fused components that the members fill. `part`: gate or up, whose rows of the natural B
  // these are.
  void put_a(std::int64_t rank_at, Members members) {
    natural_ ? put_rows(rank_at, 0, 1, members) : put_columns(rank_at, 0, 0, transposed(std::move(members)));
  }
  void put_b(std::int64_t rank_at, std::size_t part, Members members) {
    std::int64_t out_at = 0;
    for (std::size_t p = 0; p < part && !alternate_; ++p) out_at += stack_.out[p];
    const std::int64_t turn = alternate_ ? static_cast<std::int64_t>(part) : 0;
    if (natural_)
      put_columns(rank_at, out_at, turn * components(), members);
    else
      put_rows(rank_at, out_at + turn, alternate_ ? 2 : 1, transposed(std::move(members)));
  }
  void put_rows(std::int64_t rank_at, std::int64_t col, std::int64_t col_step, const Members& members) {
    plan::append_members(stacked, {.row = rank_at, .col = col, .col_step = col_step, .row_shift = stack_.rank},
                         members);
  }
  void put_columns(std::int64_t rank_at, std::int64_t row, std::int64_t col, const Members& members) {
    const plan::MemberGrid by_rank{
        .row = row, .col = col + rank_at * stack_.experts, .col_step = stack_.experts, .col_shift = 1};
    const plan::MemberGrid by_expert{.row = row, .col = col + rank_at, .col_shift = stack_.rank};
    plan::append_members(columns, rank_major_ ? by_rank : by_expert, members);
  }
  static Members transposed(Members members) {
    for (plan::MemberView& member : members) member.view = member.view.transposed();
    return members;
  }

  plan::MemberView member(const View& view, double scale) const {
    return {view, scale, file_ == nullptr ? Dtype::f32 : file_->tensors()[view.tensor].dtype};
  }
  plan::MemberView a_of(const Factor* factor) const {
    return factor == nullptr ? plan::MemberView{} : member(factor->a, 1);
  }
  plan::MemberView b_of(const Factor* factor) const {
    return factor == nullptr ? plan::MemberView{} : member(factor->b, folded_gain(*factor, stack_.scale));
  }
  Members all_a(std::size_t part) const {
    Members members;
    for (const Factor* factor : stack_.parts[part]) members.push_back(a_of(factor));
    return members;
  }
  Members all_b(std::size_t part) const {
    Members members;
    for (const Factor* factor : stack_.parts[part]) members.push_back(b_of(factor));
    return members;
  }

  const Stack& stack_;
  const TensorFile* file_;
  bool natural_, rank_major_, alternate_;
};

}  // namespace peft::layout
