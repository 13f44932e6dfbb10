// A planned file cut into units of work, which threads take one after the other. No two units write the same byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "execute/family.h"
#include "peft/plan.h"
#include "safetensors/writing/staged_output.h"

namespace peft::execution {

// How a file is cut. The bytes written do not depend on it.
struct CutSizes {
  std::uint64_t staging = std::uint64_t{8} << 20;  // what one worker may use to stage output before it is written
  // Bytes of a unit, which ends where a multiple of them does in the file: whole blocks are written with whole, large
  // pages. Rendered, they are still in the cache when they are hashed and written.
  std::uint64_t block = NewFile::kBlock;
  std::uint64_t direct_run = 2048;  // shorter runs of a source are cheaper to copy than to pass on
};
// Keeps the staging of all workers below 48 MiB.
inline constexpr int kMaxWorkers = 24;
CutSizes cut_sizes(int workers);

// Staging bytes of one piece of output: whole cache lines and one more, so that pieces of a power of two do not
// compete for the same sets of the cache.
std::uint64_t staging_size(std::uint64_t bytes);

// Either a range of the file, or some members of a family that is too large to be staged whole.
struct Unit {
  std::uint64_t begin = 0, end = 0;  // bytes of the data section
  std::size_t family = Families::kNone;
  std::size_t first_member = 0, last_member = 0;  // [first, last) of the family's members
  std::int64_t first_element = 0, last_element = 0;
};

// How a tensor's bytes come about.
enum class Making : std::uint8_t {
  direct,    // written from the mapped source, without a copy of ours
  member,    // rendered with its family
  rendered,  // rendered by rows
  merged,    // by rows too, with updates added
};

struct FileWork {
  std::uint64_t number = 0;  // of no other one in this process
  const Plan* plan = nullptr;
  const PlannedFile* file = nullptr;
  CutSizes sizes;
  FileLayout layout;
  Families families;
  std::vector<Making> making;  // for each planned tensor
  std::vector<Unit> units;

  const PlannedTensor& tensor(std::size_t t) const { return file->tensors[t]; }
  std::uint64_t bytes_of(std::size_t t) const;
  bool is_wide(std::size_t t) const;  // one row is more than a unit renders: rows are cut between columns
};
FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes, FileLayout layout);
FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes = {});

std::uint64_t bytes_of(const FileWork& work, const Unit& unit);

// A tensor's bytes [begin, end), counted in the tensor, as part of a unit.
struct Piece {
  std::size_t tensor = 0;
  std::uint64_t begin = 0, end = 0;
  std::uint64_t bytes() const { return end - begin; }
};
// In the order of the file.
void for_each_piece(const FileWork& work, const Unit& unit, const std::function<void(const Piece&)>& visit);

// Rows and columns that are made for a piece: of a rendered tensor, all that it has a part of.
Rectangle area_of(const FileWork& work, const Piece& piece);

}  // namespace peft::execution
