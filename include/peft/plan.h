// What will be written, as a plain value. Every check happens while a plan is made; execute() decides nothing.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "peft/safetensors.h"

namespace peft {

namespace gguf {
struct TypedMetadata;                 // gguf/value.h
enum class GgmlType : std::uint32_t;  // gguf/types/ggml_type.h
}  // namespace gguf

// What a step does to the numbers, from the best to the worst: the larger of two is the worse one.
enum class Exactness : std::uint8_t {
  bit_exact,    // bytes moved
  value_exact,  // zeros added, dtype widened, scale moved by a power of two
  rounded,      // one rounding, stated
  lossy,        // asked for; the error is measured
};
std::string_view name(Exactness exactness);

// What the numbers of a quantised tensor are multiplied with. Its codes form a matrix of `width` columns; code (i, j)
// takes the scale at (i / cell_rows, j / cell_cols) of `grid`. Values are exact in fp32 and then rounded once.
struct Scales {
  enum class Kind : std::uint8_t {
    fp8,    // a tensor of an 8-bit floating-point dtype; value = fp32(code) * fp32(scale): `weight_scale_inv`
    mxfp4,  // U8 `*_blocks`: two e2m1 codes a byte, low nibble first; scales are U8, 2^(byte - 127): `*_scales`
    ggml,   // a quantised type of a GGUF file, which has its scales among its codes: `grid` is not used
  };
  Kind kind = Kind::fp8;
  View grid;  // [rows of the matrix / cell_rows, width / cell_cols], each rounded up
  std::int64_t width =
      0;  // mxfp4 of [E, rows, groups, 16]: 32 * groups, with cells of 1 x 32 and a grid of [E * rows, groups]
  std::int64_t cell_rows = 1, cell_cols = 1;
};

// Where a member of a block begins. Its shape and strides are those of the block's source.
struct Origin {
  std::uint32_t source = 0, tensor = 0;
  std::int64_t offset = 0;  // kZeros: the member has no view, and is filled with zeros

  static constexpr std::int64_t kZeros = -1;
  bool is_zeros() const { return offset == kZeros; }
  bool operator==(const Origin&) const = default;
};

// What fills a part of an output matrix: a view, or several views of one shape, such as a layer's experts. Element (i,
// j) of member m goes to row + i + m * row_shift, col + j * col_step + m * col_shift; a view alone is member 0.
//   col_step 1                   columns side by side (a copy)
//   row_shift r                  a stack: lora_A of fused experts, row e * r + k
//   col_step E, with col_shift 1 an interleave: lora_B of fused experts, column k * E + e
// `scale` multiplies (in fp64, rounded once to the output dtype); 1 moves the value as it is.
// With `scales` the view counts codes (of mxfp4: two a byte) and the block holds their values; its own scale is 1.
struct Block {
  std::int64_t row = 0, col = 0, col_step = 1;
  View source;
  double scale = 1;
  std::optional<Scales> scales{};
  // All members, where there are several; `source` is then the first one that is not zeros. Not with `scales`, and not
  // in tensors that are merged. plan/members.h makes such blocks.
  std::int64_t row_shift = 0, col_shift = 0;
  std::vector<Origin> members{};

  std::int64_t num_members() const { return members.empty() ? 1 : static_cast<std::int64_t>(members.size()); }
  // The row after the last one of the last member.
  std::int64_t row_end() const { return row + (num_members() - 1) * row_shift + source.rows; }
  // Calls visit(block) for each member that is not zeros, as a block of a single view.
  template <class Visit>
  void for_each_member(const Visit& visit) const {
    if (members.empty()) return visit(*this);
    Block member{row, col, col_step, source, scale};
    for (const Origin& origin : members) {
      member.source.source = origin.source, member.source.tensor = origin.tensor, member.source.offset = origin.offset;
      if (!origin.is_zeros()) visit(std::as_const(member));
      member.row += row_shift, member.col += col_shift;
    }
  }
};

// How a merge rounds. d(i, j) is one chain of fused multiply-adds in fp32 that runs over the rank in order, from +0,
// the same on every machine and any number of threads.
enum class MergeMode : std::uint8_t {
  best,  // W = fma(scale, d, W) in fp32, all adapters, one rounding; in fp64 for fp32 bases and where fp32 has too few
         // bits left (the sum cancels); DoRA norms in fp64, of the unmerged W + scale * d
  peft,  // the roundings of PEFT's merge_and_unload(): adapter after adapter, each rounded to the base's dtype
  peft_safe,  // those of merge_and_unload(safe_merge=True): the delta is rounded before it is added
  fast,       // the quickest kernel of the machine; the error is measured and reported
};

// A low-rank update of a matrix that lies in an output tensor: target(i, j) += scale * sum over k of b(i, k) * a(k, j).
// Two updates of a tensor have the same target (adapters, in the order in which they are applied) or share no element.
// In the planned tensor's matrix one index of a target walks along rows and the other along columns, in steps of any
// size.
struct Update {
  View target;       // [out, in]: offset and strides in elements of the planned tensor; source and tensor unused
  View a, b;         // of the plan's sources: [rank, in], [out, rank]; b of no rows stands for ones (a bias: a [1, n])
  double scale = 1;  // the adapter's weight included
  std::optional<View> magnitude{};  // DoRA, [out, 1]: row i of W + delta is scaled by magnitude(i) / its own norm
  bool delta_is_rounded = false;    // modes peft and peft_safe: PEFT rounds this kind's delta before it adds it
  std::uint32_t adapter = 0;        // which of the adapters given
};
struct Merge {
  MergeMode mode = MergeMode::best;
  Dtype base_dtype =
      Dtype::bf16;  // W is converted to this first (--base-dtype); result rounds to it, then to the tensor's dtype
  std::vector<Update> updates{};
};

// An output tensor, seen as a matrix [rows, cols]. 1-D: one row. More dimensions: all but the last flattened, and some
// rows that follow each other may be taken together; kernels: all but the first. Blocks do not overlap; what no block covers is zero. A block whose source has another dtype than the
// tensor is converted: widened exactly, or rounded to nearest even.
struct PlannedTensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  std::int64_t rows = 0, cols = 0;
  std::vector<Block> blocks{};
  std::optional<Merge> merge{};  // what is added to the blocks' values
  bool must_be_finite = false;   // NaN and infinity end the run (NUM_NONFINITE): set for LoRA factors
  // Of a GGUF file: the quantised type that it is stored in. Values of dtype F32 are rounded as ggml's reference rounds
  // them; where the dtype is unknown, the bytes of a source of that type are moved. Absent: elements of the dtype.
  std::optional<gguf::GgmlType> packing{};
  // Tensors of a file with the same number take turns in one source tensor: the experts' lora_B, taken out of a fused
  // one. They are rendered together. Each has one block, of one view, and all views are alike but for their offset.
  std::int32_t column_group = kNoGroup;

  static constexpr std::int32_t kNoGroup = -1;
  std::uint64_t bytes() const;  // in the file
};

// What its elements are called in the file: "BF16", "Q8_0".
std::string_view type_name(const PlannedTensor& tensor);

// A tensor of a file, carried over whole (under another name, or cast to another dtype).
PlannedTensor copy_of(const TensorInfo& tensor, std::uint32_t index, std::string name, Dtype dtype);

struct PlannedFile {
  std::string name;  // relative to the output folder
  std::vector<PlannedTensor> tensors;
  Metadata metadata{{"format", "pt"}};
  // Set for a GGUF file, whose metadata has types: its keys. `metadata` is not used then.
  std::shared_ptr<const gguf::TypedMetadata> gguf{};
};

FileLayout layout_file(const PlannedFile& file);

struct Plan {
  std::vector<std::shared_ptr<const TensorFile>> sources;  // what View::source counts
  std::vector<PlannedFile> files;
  std::vector<std::pair<std::string, std::string>> texts;   // name, content: configs
  std::vector<std::pair<std::string, std::string>> copies;  // name, path: side files
  Exactness exactness = Exactness::bit_exact;               // the worst of all steps
  std::vector<std::string> steps;  // in words, for --dry-run: "gate_up_proj: 48 layers, ... (value-exact)"
  std::vector<std::string> warnings;
  std::uint64_t bytes_in = 0, bytes_out = 0, peak_memory = 0;
  bool single_file = false;  // the output is the plan's one file itself, not a folder
};
std::ostream& operator<<(std::ostream& out, const Plan& plan);  // what --dry-run prints

// Calls visit(view) for every view of the plan's sources that a planned tensor reads: blocks and their members, their
// scales, the factors and magnitudes of updates. The tensor may be const or not; so are the views. A visit may change
// where a view lies, not its shape.
template <class Tensor, class Visit>
void for_each_source(Tensor& tensor, const Visit& visit) {
  for (auto& block : tensor.blocks) {
    for (auto& origin : block.members) {
      if (origin.is_zeros()) continue;
      View view = block.source;
      view.source = origin.source, view.tensor = origin.tensor, view.offset = origin.offset;
      visit(view);
      if constexpr (!std::is_const_v<Tensor>) origin = {view.source, view.tensor, view.offset};
    }
    visit(block.source);
    if (block.scales && block.scales->kind != Scales::Kind::ggml) visit(block.scales->grid);
  }
  if (!tensor.merge) return;
  for (auto& update : tensor.merge->updates) {
    visit(update.a);
    if (update.b.rows != 0) visit(update.b);  // without rows it stands for ones
    if (update.magnitude) visit(*update.magnitude);
  }
}

// What execute() uses to stage output, at most, on any number of threads.
inline constexpr std::uint64_t kMaxStagingBytes = std::uint64_t{48} << 20;

// The bytes of all source tensors that the plan reads. A tensor that is read twice counts once.
std::uint64_t bytes_read(const Plan& plan);

// Sets bytes_in, bytes_out and peak_memory. The memory is that of headers and staged output, as sources are mapped;
// what a source that lies in memory takes is not counted. Returns the layouts of the files, which it makes on the way.
std::vector<FileLayout> set_cost(Plan& plan);

// Adds `part` to a plan: its files go into the subfolder `folder` of the output; "" is the output folder itself.
// Several adapters or models that are appended to one plan are written in one step: all of them appear, or none.
void append(Plan& plan, Plan part, const std::string& folder = {});

}  // namespace peft
