// Produces the bytes of a unit: rendered into a worker's own memory, or left where they lie in a mapped source.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "execute/merge/merger.h"
#include "execute/run/unit.h"
#include "execute/values/packing_loss.h"

namespace peft::execution {

// Bytes that follow each other in the file, from `offset` in the data section on. They may lie in several places of
// memory.
struct FileExtent {
  std::uint64_t offset = 0;
  std::vector<iovec> parts;
};

// Not for several threads. Its memory is reused from unit to unit, since fresh pages cost more than rendering.
class UnitRenderer {
 public:
  UnitRenderer(std::uint64_t bytes, MergeStores& stores);

  // The result is valid until the next call. Throws NUM_OVERFLOW for a value that its new dtype cannot hold, and
  // NUM_NONFINITE for NaN and infinity where the plan forbids them.
  std::span<const FileExtent> make(const FileWork& work, const Unit& unit);
  const MergeError& merge_error() const { return merger_.error(); }
  PackingLoss take_packing_loss() { return std::exchange(packing_loss_, {}); }  // of what was made since the last call

 private:
  struct Waiting {  // a member that is rendered with the others of its column group
    TensorSlice slice;
    std::byte* out;
  };
  std::byte* allocate(std::uint64_t bytes, std::uint64_t phase);
  void append(const FileWork& work, std::size_t tensor, std::uint64_t offset, const std::byte* data,
              std::uint64_t bytes);
  void append_zeros(std::uint64_t bytes);
  void append_direct(const FileWork& work, const TensorSlice& slice);
  std::byte* append_staged(const FileWork& work, const TensorSlice& slice, const TensorSlice& made);
  void render_slice(const FileWork& work, const TensorSlice& slice);
  void pack_slice(const FileWork& work, const TensorSlice& slice);
  void render_values(const FileWork& work, std::size_t tensor, const Rectangle& area);
  void measure(const FileWork& work, const TensorSlice& slice, Rectangle area, const std::byte* packed);
  void render_column_group(const FileWork& work, std::span<Waiting> waiting);
  const TensorOps& ops_of(const FileWork& work, std::size_t tensor);

  struct Unmap {
    std::uint64_t bytes;
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Unmap> memory_;
  std::uint64_t size_, used_ = 0;
  std::vector<FileExtent> extents_;
  std::size_t num_extents_ = 0;
  std::uint64_t end_ = 0;  // of the last extent, in the file
  bool fills_gaps_ = false;
  struct Made {  // bytes that are checked for NaN and infinity once they are rendered
    std::size_t tensor;
    const std::byte* data;
    std::uint64_t bytes;
  };
  std::vector<Made> made_;
  std::vector<Waiting> waiting_;
  std::vector<Destination> destinations_;
  Scratch scratch_;
  // Rows of a packed tensor: before they are quantised, before the merge, and what the codes are worth.
  std::vector<float> unpacked_, before_, stored_;
  PackingLoss packing_loss_;
  Merger merger_;
  // Operations of the last tensor. The next unit often continues it.
  std::uint64_t ops_work_ = 0;
  std::size_t ops_tensor_ = 0;
  TensorOps ops_;
};

}  // namespace peft::execution
