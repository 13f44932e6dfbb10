// A planned file cut into units of work. Threads take one unit after the other. No two units write the same byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "execute/copy/column_group.h"
#include "peft/plan.h"
#include "safetensors/writing/staged_output.h"

namespace peft::execution {

// How a file is cut. The bytes written do not depend on it.
struct CutSizes {
  std::uint64_t staging = std::uint64_t{8} << 20;  // what one worker may use to stage output before it is written
  // Bytes of a unit. Units end at multiples of it in the file, so that whole blocks are written with large pages. A
  // rendered unit is still in the cache when it is hashed and written.
  std::uint64_t block = NewFile::kBlock;
  std::uint64_t direct_run = 2048;  // shorter stretches of a source are cheaper to copy than to write directly
};
// Keeps the staging of all workers below kMaxStagingBytes.
inline constexpr int kMaxWorkers = 24;
CutSizes cut_sizes(int workers);

// Staging bytes for `bytes` of output: whole cache lines and one more. Sizes that are powers of two would compete for
// the same sets of the cache.
std::uint64_t staging_size(std::uint64_t bytes);

// A range of the file, the padding between its tensors included; or, of a column group that is too large to be staged
// whole, some elements of some members.
struct Unit {
  std::uint64_t begin = 0, end = 0;  // bytes of the data section
  std::size_t group = ColumnGroups::kNone;
  std::size_t first_member = 0, last_member = 0;  // [first, last) of the group's members
  std::int64_t first_element = 0, last_element = 0;
};

// Where the bytes of a tensor come from.
enum class ByteSource : std::uint8_t {
  direct,    // written from the mapped source without a copy
  member,    // rendered together with its column group
  rendered,  // rendered row by row
  packed,    // rendered row by row in F32, then quantised
  merged,    // rendered row by row, with updates added
};

struct FileWork {
  std::uint64_t number = 0;  // unique in this process
  const Plan* plan = nullptr;
  const PlannedFile* file = nullptr;
  CutSizes sizes;
  FileLayout layout;
  ColumnGroups column_groups;
  std::vector<ByteSource> byte_source;  // for each planned tensor
  std::vector<Unit> units;

  const PlannedTensor& tensor(std::size_t t) const { return file->tensors[t]; }
  std::uint64_t bytes_of(std::size_t t) const { return tensor(t).bytes(); }
  // What cannot be cut: an element, or a block of elements of a packed tensor.
  std::uint64_t grain_bytes(std::size_t t) const;
  std::int64_t grain_elements(std::size_t t) const;
  bool is_wide(std::size_t t) const;  // a row is larger than a unit; rows are cut between columns
};
FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes, FileLayout layout);
FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes = {});

std::uint64_t bytes_of(const FileWork& work, const Unit& unit);

// Bytes [begin, end) of a tensor, counted from its first byte: the part of a tensor that belongs to a unit.
struct TensorSlice {
  std::size_t tensor = 0;
  std::uint64_t begin = 0, end = 0;
  std::uint64_t bytes() const { return end - begin; }
};
// Visits the slices of a unit in the order of the file.
void for_each_slice(const FileWork& work, const Unit& unit, const std::function<void(const TensorSlice&)>& visit);

// The rows and columns that have to be rendered for a slice: every row that it has a part of.
Rectangle area_of(const FileWork& work, const TensorSlice& slice);

// Sorts the units so that experts whose factors are gathered together (gathered_factors.h) follow each other, at the
// place of the first one. Names sort as 0, 1, 10, 100, ...; in that order each group would be gathered many times. All
// other units keep the order of the file. Units that span groups are cut.
void order_units(FileWork& work);

}  // namespace peft::execution
