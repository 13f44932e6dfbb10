// Sources and plans for the tests of this stage. For tests.
#pragma once

#include <cstddef>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "peft/plan.h"

namespace peft::execution {

// What happens to the numbers on the way.
struct Change {
  Dtype from = Dtype::bf16, to = Dtype::bf16;
  double scale = 1;
};

// Collects source tensors and planned tensors, then makes the plan. Tensors lie in the source in the order in
// which they are added, so that a byte tensor in front puts all others at odd offsets.
class PlanBuilder {
 public:
  explicit PlanBuilder(std::uint32_t seed) : random_(seed) {}

  std::mt19937& random() { return random_; }
  std::int64_t pick(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random_() % static_cast<std::uint32_t>(high - low + 1));
  }
  bool chance(int percent) { return pick(0, 99) < percent; }

  // The view of a whole new source tensor [rows, cols]. Values: random bits, or finite numbers of moderate size.
  View source(Dtype dtype, std::int64_t rows, std::int64_t cols, bool any_bits);
  // The same with numbers of a normal distribution.
  View normal(Dtype dtype, std::int64_t rows, std::int64_t cols, double sigma);
  // The same with these numbers, row after row.
  View values(Dtype dtype, std::int64_t rows, std::int64_t cols, const std::vector<double>& numbers);
  PlannedTensor& output(const std::string& name, Dtype dtype, std::int64_t rows, std::int64_t cols);
  std::int32_t new_column_group() { return num_groups_++; }

  Plan make(const std::string& path = "source.safetensors");
  const std::vector<std::byte>& image() const { return image_; }  // the source file; must outlive the plan

 private:
  std::mt19937 random_;
  std::string header_;
  std::vector<std::byte> data_, image_;
  std::uint32_t num_sources_ = 0;
  std::int32_t num_groups_ = 0;
  PlannedFile file_;
};

// Adds planned tensors of one of the shapes that layouts make (see the table in random_plan.cpp), with sizes
// up to about `size`, and their sources.
int num_shapes();
void add_shape(PlanBuilder& builder, int shape, const std::string& prefix, std::int64_t size, const Change& change);

}  // namespace peft::execution
