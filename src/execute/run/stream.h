// Streams the units of a file: renders, hashes and writes them; and reads them back.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "execute/run/unit_renderer.h"
#include "peft/execute.h"
#include "safetensors/writing/staged_output.h"

namespace peft::execution {

// Progress and cancellation of a run.
class Monitor {
 public:
  Monitor(const ExecuteOptions& options, std::uint64_t total) : options_(options), total_(total) {}

  // Throws INTERRUPTED once the run is cancelled.
  void check() const;
  // Reports bytes as written. Safe from any thread.
  void add(std::uint64_t bytes);

 private:
  const ExecuteOptions& options_;
  std::uint64_t total_;
  std::atomic<std::uint64_t> done_ = 0;
};

// One renderer for each worker, made when the worker starts.
class UnitRenderers {
 public:
  explicit UnitRenderers(int threads) : renderers_(static_cast<std::size_t>(threads)) {}
  int threads() const { return static_cast<int>(renderers_.size()); }
  CutSizes sizes() const { return cut_sizes(threads()); }
  UnitRenderer& of(int worker) {
    auto& renderer = renderers_[static_cast<std::size_t>(worker)];
    if (!renderer) renderer = std::make_unique<UnitRenderer>(sizes().staging, merge_stores_);
    return *renderer;
  }
  MergeError merge_error() const;   // of all workers
  PackingLoss take_packing_loss();  // of all workers, since the last call

 private:
  MergeStores merge_stores_;
  std::vector<std::unique_ptr<UnitRenderer>> renderers_;
};

// A digest of each unit's bytes, in the order of for_each_slice.
using Digests = std::vector<std::uint64_t>;

// Writes the header and all units. The digests are empty unless they are wanted.
Digests write_units(const FileWork& work, NewFile& file, UnitRenderers& renderers, Monitor& monitor, bool want_digests);

// Renders all units into `data`, which has the size of the data section.
void render_units(const FileWork& work, std::span<std::byte> data, UnitRenderers& renderers, Monitor& monitor);

// The digests of a file on disk, and whether it begins with the right header.
using ReadAt = std::function<void(std::uint64_t offset, std::span<std::byte> bytes)>;
Digests digests_in(const FileWork& work, const ReadAt& file, UnitRenderers& renderers, Monitor& monitor);
bool has_head(const FileWork& work, const ReadAt& file);
std::uint64_t digest_of(const Digests& digests);  // of all digests

// Reads all units from the file. Throws OUT_READBACK, naming the tensor, if a unit differs from what was written.
void read_back(const FileWork& work, const NewFile& file, const Digests& digests, UnitRenderers& renderers,
               const Monitor& monitor);

}  // namespace peft::execution
