// What will be written, as a plain value. Every check happens while a plan is made; execute() decides nothing.
#pragma once

#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "peft/safetensors.h"

namespace peft {

// Worst first when compared: what a step does to the numbers.
enum class Exactness : std::uint8_t {
  bit_exact,     // bytes moved
  value_exact,   // zeros added, dtype widened, scale moved by a power of two
  rounded,       // one rounding, stated
  lossy,         // asked for; the error is measured
};
std::string_view name(Exactness exactness);

// One rectangle of an output matrix. Element (i, j) of `source` goes to row + i, col + j * col_step.
//   col_step 1   columns side by side (a copy, a stack)
//   col_step E   every E-th column: lora_B of fused experts, column k * E + e
// `scale` multiplies (in fp64, rounded once to the output dtype); 1 moves the value as it is.
struct Block {
  std::int64_t row = 0, col = 0, col_step = 1;
  View source;
  double scale = 1;
};

// An output tensor, seen as a matrix [rows, cols] (1-D: one row; more dimensions: all but the last flattened).
// Blocks do not overlap; what no block covers is zero. A block whose source has another dtype than the tensor
// is converted: widened exactly, or rounded to nearest even.
struct PlannedTensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::int64_t rows = 0, cols = 0;
  std::vector<Block> blocks;
  bool must_be_finite = false;          // NaN and infinity end the run (NUM_NONFINITE): set for LoRA factors
};

// A tensor of a file, carried over whole (under another name, or cast to another dtype).
PlannedTensor copy_of(const TensorInfo& tensor, std::uint32_t index, std::string name, Dtype dtype);

struct PlannedFile {
  std::string name;                     // relative to the output folder
  std::vector<PlannedTensor> tensors;
  Metadata metadata{{"format", "pt"}};
};

struct Plan {
  std::vector<std::shared_ptr<const TensorFile>> sources;   // what View::source counts
  std::vector<PlannedFile> files;
  std::vector<std::pair<std::string, std::string>> texts;   // name, content: configs
  std::vector<std::pair<std::string, std::string>> copies;  // name, path: side files
  Exactness exactness = Exactness::bit_exact;               // the worst of all steps
  std::vector<std::string> steps;                           // in words, for --dry-run: "gate_up_proj: 48 layers, ... (value-exact)"
  std::vector<std::string> warnings;
  std::uint64_t bytes_in = 0, bytes_out = 0, peak_memory = 0;
};
std::ostream& operator<<(std::ostream& out, const Plan& plan);    // what --dry-run prints

}  // namespace peft
