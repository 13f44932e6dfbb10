#include "support/random_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "execute/values/element.h"
#include "plan/check.h"
#include "plan/members.h"

namespace peft::execution {

View PlanBuilder::source(Dtype dtype, std::int64_t rows, std::int64_t cols, bool any_bits) {
  const auto bytes = static_cast<std::size_t>(rows * cols * info(dtype).bits / 8);
  const std::size_t begin = data_.size();
  header_ += fmt::format(R"({}"source.{}":{{"dtype":"{}","shape":[{},{}],"data_offsets":[{},{}]}})",
                         header_.empty() ? "" : ",", num_sources_, info(dtype).name, rows, cols, begin, begin + bytes);
  data_.resize(begin + bytes);
  const std::size_t size = static_cast<std::size_t>(info(dtype).bits) / 8;
  for (std::size_t at = begin; at < data_.size(); at += any_bits ? 1 : size) {
    if (any_bits) {
      data_[at] = std::byte(random_());
    } else {
      store_element(dtype, static_cast<double>(pick(-1000, 1000)) / 16, &data_[at]);
    }
  }
  return {0, num_sources_++, 0, rows, cols, cols, 1};
}

View PlanBuilder::normal(Dtype dtype, std::int64_t rows, std::int64_t cols, double sigma) {
  const std::size_t begin = data_.size();
  const View view = source(dtype, rows, cols, true);
  std::normal_distribution<double> values(0, sigma);
  const std::size_t size = static_cast<std::size_t>(info(dtype).bits) / 8;
  for (std::size_t at = begin; at < data_.size(); at += size) store_element(dtype, values(random_), &data_[at]);
  return view;
}

View PlanBuilder::values(Dtype dtype, std::int64_t rows, std::int64_t cols, const std::vector<double>& numbers) {
  const std::size_t begin = data_.size(), size = static_cast<std::size_t>(info(dtype).bits) / 8;
  const View view = source(dtype, rows, cols, true);
  for (std::size_t i = 0; i < numbers.size(); ++i) store_element(dtype, numbers[i], &data_[begin + i * size]);
  return view;
}

PlannedTensor& PlanBuilder::output(const std::string& name, Dtype dtype, std::int64_t rows, std::int64_t cols) {
  file_.tensors.push_back({name, dtype, {rows, cols}, rows, cols, {}});
  return file_.tensors.back();
}

Plan PlanBuilder::make(const std::string& path) {
  std::string header = "{" + header_ + "}";
  const std::uint64_t length = header.size();
  image_.resize(8 + header.size() + data_.size());
  std::memcpy(image_.data(), &length, 8);
  std::memcpy(image_.data() + 8, header.data(), header.size());
  if (!data_.empty()) std::memcpy(image_.data() + 8 + header.size(), data_.data(), data_.size());
  Plan plan;
  plan.sources.push_back(TensorFile::parse(image_, path));
  file_.name = "adapter_model.safetensors";
  plan.files.push_back(std::move(file_));
  return plan;
}

namespace {

struct Sizes {
  std::int64_t experts, rank, out;
};

Sizes sizes(PlanBuilder& b, std::int64_t size) {
  const std::int64_t ranks[] = {1, 2, 3, 4, 8, 16};
  return {b.pick(1, size), ranks[b.pick(0, std::ssize(ranks) - 1)], b.pick(1, size)};
}

std::string expert_name(const std::string& prefix, std::int64_t e, const char* what) {
  return fmt::format("{}.experts.{}.{}.weight", prefix, e, what);
}

View new_source(PlanBuilder& b, const Change& change, std::int64_t rows, std::int64_t cols) {
  return b.source(change.from, rows, cols, change.from == change.to && change.scale == 1);
}

// Members as one block, or each as a block of its own.
std::vector<Block> blocks_of(PlanBuilder& b, const plan::MemberGrid& grid,
                             const std::vector<plan::MemberView>& members) {
  std::vector<Block> blocks;
  if (b.chance(80)) {
    plan::append_members(blocks, grid, members);
    return blocks;
  }
  for (std::size_t m = 0; m < members.size(); ++m) {
    plan::MemberGrid place = grid;
    place.row += static_cast<std::int64_t>(m) * grid.row_shift;
    place.col += static_cast<std::int64_t>(m) * grid.col_shift;
    plan::append_members(blocks, place, std::span(members).subspan(m, 1));
  }
  return blocks;
}

// A member with the scale of `change`; now and then with another scale, or missing.
plan::MemberView member(PlanBuilder& b, const Change& change, bool irregular, const View& view) {
  if (irregular && b.chance(30)) return {};
  return {view, irregular && change.scale != 1 && b.chance(10) ? 2 * change.scale : change.scale, change.from};
}

// lora_A of experts stacked: row e * r + k. Some are missing. `transposed`: the sources are lora_B [in, r].
void stack(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change, bool transposed) {
  const auto [experts, rank, in] = sizes(b, size);
  const bool irregular = b.chance(30);
  std::vector<plan::MemberView> members;
  for (std::int64_t e = 0; e < experts; ++e) {
    const View view = transposed ? new_source(b, change, in, rank).transposed() : new_source(b, change, rank, in);
    members.push_back(member(b, change, irregular, view));
  }
  b.output(prefix + ".stack", change.to, experts * rank, in).blocks = blocks_of(b, {.row_shift = rank}, members);
}

// lora_B of experts fused: column k * E + e. `halves` 2: gate above up, block-diagonal, twice the rank.
void fuse(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change, int halves,
          bool transposed) {
  const auto [experts, rank, out] = sizes(b, size);
  const bool irregular = b.chance(30);
  std::vector<Block> blocks;
  for (int half = 0; half < halves; ++half) {
    std::vector<plan::MemberView> members;
    for (std::int64_t e = 0; e < experts; ++e) {
      const View view = transposed ? new_source(b, change, rank, out).transposed() : new_source(b, change, out, rank);
      members.push_back(member(b, change, irregular, view));
    }
    for (Block& block : blocks_of(b, {half * out, half * rank * experts, experts, 0, 1}, members))
      blocks.push_back(std::move(block));
  }
  b.output(prefix + ".fused", change.to, halves * out, halves * rank * experts).blocks = blocks;
}

// lora_B of experts taken out of a fused one, [out, R * E]: some ranks of it, and all rows, a half, or every second
// one.
void unfuse(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  const auto [experts, rank, half] = sizes(b, size);
  const View fused = new_source(b, change, 2 * half, 2 * rank * experts);
  const int rows = static_cast<int>(b.pick(0, 2));
  const std::int32_t group = b.chance(80) ? b.new_column_group() : PlannedTensor::kNoGroup;
  for (std::int64_t e = 0; e < experts; ++e) {
    for (int up = 0; up < 2; ++up) {
      const View columns = fused.col_range(up * rank * experts + e, rank, experts);
      const View view = rows == 0   ? columns
                        : rows == 1 ? columns.row_range(up * half, half)
                                    : columns.row_range(up, half, 2);
      PlannedTensor& lora_b =
          b.output(expert_name(prefix, e, up ? "up.lora_B" : "gate.lora_B"), change.to, view.rows, view.cols);
      lora_b.blocks = {{0, 0, 1, view, change.scale}};
      lora_b.column_group = group;
      if (b.chance(20)) {  // something between them in the file
        const View other = new_source(b, change, 1, b.pick(1, size));
        b.output(expert_name(prefix, e, up ? "up.lora_A" : "gate.lora_A"), change.to, 1, other.cols).blocks = {
            {0, 0, 1, other, change.scale}};
      }
    }
  }
}

// The reversed form: lora_A of an expert is made of columns of the fused lora_B, lora_B of rows of the fused lora_A.
void unfuse_reversed(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  const auto [experts, rank, width] = sizes(b, size);
  const View fused_b = new_source(b, change, width, rank * experts),
             fused_a = new_source(b, change, rank * experts, width);
  const std::int32_t group = b.chance(80) ? b.new_column_group() : PlannedTensor::kNoGroup;
  for (std::int64_t e = 0; e < experts; ++e) {
    PlannedTensor& lora_a = b.output(expert_name(prefix, e, "lora_A"), change.to, rank, width);
    lora_a.blocks = {{0, 0, 1, fused_b.col_range(e, rank, experts).transposed(), change.scale}};
    lora_a.column_group = group;
    b.output(expert_name(prefix, e, "lora_B"), change.to, width, rank).blocks = {
        {0, 0, 1, fused_a.row_range(e * rank, rank).transposed(), change.scale}};
  }
}

// Column k * E + e to column e * r + k, or back.
void regroup(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  const auto [experts, rank, out] = sizes(b, size);
  const View fused = new_source(b, change, out, rank * experts);
  std::vector<plan::MemberView> members;
  const bool to_grouped = b.chance(50);
  for (std::int64_t e = 0; e < experts; ++e) {
    const View view = to_grouped ? fused.col_range(e, rank, experts) : fused.col_range(e * rank, rank);
    members.push_back({view, change.scale, change.from});
  }
  b.output(prefix + ".regrouped", change.to, out, experts * rank).blocks =
      to_grouped ? blocks_of(b, {.col_shift = rank}, members)
                 : blocks_of(b, {.col_step = experts, .col_shift = 1}, members);
}

// lora_A [r, in] of experts as columns e * r + k: transposed, side by side.
void side_by_side(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  const auto [experts, rank, in] = sizes(b, size);
  const bool irregular = b.chance(30);
  std::vector<plan::MemberView> members;
  for (std::int64_t e = 0; e < experts; ++e)
    members.push_back(member(b, change, irregular, new_source(b, change, rank, in).transposed()));
  b.output(prefix + ".side_by_side", change.to, in, experts * rank).blocks = blocks_of(b, {.col_shift = rank}, members);
}

// Whole tensors of any dtype, of any size down to nothing, and zeros that come from no source.
void whole(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  for (int i = 0; i < 4; ++i) {
    const auto dtype = static_cast<Dtype>(b.pick(0, static_cast<int>(Dtype::unknown) - 1));
    const std::int64_t rows = b.pick(1, size), cols = 4 * b.pick(1, size);
    const View view = b.source(dtype, rows, cols, true);
    b.output(fmt::format("{}.whole.{}", prefix, i), dtype, rows, cols).blocks = {{0, 0, 1, view, 1}};
  }
  const View view = new_source(b, change, b.pick(1, size), b.pick(1, size));
  b.output(prefix + ".changed", change.to, view.rows, view.cols).blocks = {{0, 0, 1, view, change.scale}};
  b.output(prefix + ".zeros", change.to, b.pick(1, size), b.pick(1, size));
  b.output(prefix + ".empty", change.to, 0, b.pick(0, size));
}

// A grid of blocks with strides and steps of any kind: repeated, reversed, transposed elements; some left out.
void scattered(PlanBuilder& b, const std::string& prefix, std::int64_t size, const Change& change) {
  const std::int64_t step = b.pick(1, 4), down = b.pick(1, 3), across = b.pick(1, 3);
  const std::int64_t rows = b.pick(1, size), cols = b.pick(1, size);
  std::vector<Block> blocks;
  for (std::int64_t y = 0; y < down; ++y) {
    for (std::int64_t x = 0; x < across * step; ++x) {
      if (b.chance(20)) continue;
      View view = new_source(b, change, 2 * rows, 3 * cols);
      view.rows = rows;
      view.cols = cols;
      switch (b.pick(0, 4)) {
        case 0:
          break;
        case 1:
          view.row_stride = 0;
          break;
        case 2:
          view.col_stride = 3;
          break;
        case 3:
          view = {0, view.tensor, 6 * rows * cols - 1, rows, cols, -cols, -1};
          break;
        default:
          view = {0, view.tensor, 0, rows, cols, 1, rows};
          break;
      }
      blocks.push_back({y * rows, x / step * cols * step + x % step, step, view, change.scale});
    }
  }
  std::shuffle(blocks.begin(), blocks.end(), b.random());
  b.output(prefix + ".scattered", change.to, down * rows, across * step * cols).blocks = blocks;
}

using AddShape = void (*)(PlanBuilder&, const std::string&, std::int64_t, const Change&);
constexpr AddShape kShapes[] = {
    [](auto& b, auto& prefix, auto size, auto& change) { stack(b, prefix, size, change, false); },
    [](auto& b, auto& prefix, auto size, auto& change) { stack(b, prefix, size, change, true); },
    [](auto& b, auto& prefix, auto size, auto& change) { fuse(b, prefix, size, change, 1, false); },
    [](auto& b, auto& prefix, auto size, auto& change) { fuse(b, prefix, size, change, 2, false); },
    [](auto& b, auto& prefix, auto size, auto& change) { fuse(b, prefix, size, change, 1, true); },
    unfuse,
    unfuse_reversed,
    regroup,
    side_by_side,
    whole,
    scattered,
};

}  // namespace

int num_shapes() { return static_cast<int>(std::size(kShapes)); }

void add_shape(PlanBuilder& builder, int shape, const std::string& prefix, std::int64_t size, const Change& change) {
  kShapes[shape](builder, prefix, size, change);
}

}  // namespace peft::execution
