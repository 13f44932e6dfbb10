// Which files a run has to write: those of its share that no earlier run has finished.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "execute/resume/journal.h"
#include "execute/run/stream.h"

namespace peft::execution {

// For each planned file: its journal line, if a journal says that it is finished and the file in `folder` agrees. Files
// not in `wanted` are not checked.
std::vector<std::optional<FinishedFile>> find_finished(const Plan& plan, const std::vector<std::size_t>& wanted,
                                                       const std::string& folder,
                                                       const std::vector<FinishedFile>& journaled,
                                                       const ExecuteOptions& options);

// A run that was killed after its commit leaves a complete output and its journals. Returns whether that is the case,
// and removes the journals then.
bool is_published(const Plan& plan, const std::string& out, const std::string& fingerprint,
                  const ExecuteOptions& options);

// The indexes of the files of part `part` (1 to `parts`), ascending. Every file is in exactly one part. The largest
// file that is left goes to the part with the fewest bytes, so that parts are balanced.
std::vector<std::size_t> share_of(std::span<const std::uint64_t> sizes, int part, int parts);

}  // namespace peft::execution
