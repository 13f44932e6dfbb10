// What packing a merged tensor costs: how far its codes are from the merged values, and how much of the delta they
// keep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "peft/execute.h"

namespace peft::execution {

// A sum of doubles that does not depend on their order, so that any number of threads finds the same. Numbers are
// counted in multiples of 2^-80.
class OrderlessSum {
 public:
  void add(double value);
  void add(const OrderlessSum& other) { units_ += other.units_; }
  double value() const;

 private:
  __extension__ using Units = __int128;
  Units units_ = 0;
};

// The same rows in fp32: before the merge, merged, and what the codes are worth.
struct PackedRows {
  std::span<const float> before, merged, packed;
};

// Not for several threads: each has its own, and they are added.
class PackingLoss {
 public:
  void add(std::size_t tensor, const PackedRows& rows, std::size_t cols);  // cols: whole blocks
  void add(const PackingLoss& other);
  // In the order of the tensors.
  std::vector<PackedTensor> results(std::size_t file) const;

 private:
  struct Sums {
    OrderlessSum error, delta, kept;
  };
  std::map<std::size_t, Sums> of_tensor_;
};

}  // namespace peft::execution
