// Runs the units of a file: makes, hashes and writes them; and reads them back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "execute/monitor.h"
#include "execute/stage.h"
#include "safetensors/writing/staged_output.h"

namespace peft::execution {

// One stage for each worker, made when it first works.
class Stages {
 public:
  explicit Stages(int threads) : stages_(static_cast<std::size_t>(threads)) {}
  int threads() const { return static_cast<int>(stages_.size()); }
  CutSizes sizes() const { return cut_sizes(threads()); }
  Stage& of(int worker) {
    auto& stage = stages_[static_cast<std::size_t>(worker)];
    if (!stage) stage = std::make_unique<Stage>(sizes().staging, merge_stores_);
    return *stage;
  }
  MergeError merge_error() const;  // of all

 private:
  MergeStores merge_stores_;
  std::vector<std::unique_ptr<Stage>> stages_;
};

// A digest of each unit's bytes, in the order of for_each_piece.
using Digests = std::vector<std::uint64_t>;

// Writes the header and all units. The digests are empty unless they are wanted.
Digests write_units(const FileWork& work, NewFile& file, Stages& stages, Monitor& monitor, bool want_digests);

// The same digests of a file that is there, and whether it begins with the header it should have.
using ReadAt = std::function<void(std::uint64_t offset, std::span<std::byte> bytes)>;
Digests digests_in(const FileWork& work, const ReadAt& file, Stages& stages, Monitor& monitor);
bool has_head(const FileWork& work, const ReadAt& file);
std::uint64_t digest_of(const Digests& digests);  // all in one number

// Reads all units from the file and throws OUT_READBACK, naming the tensor, if one is not what was written.
void read_back(const FileWork& work, const NewFile& file, const Digests& digests, Stages& stages,
               const Monitor& monitor);

}  // namespace peft::execution
