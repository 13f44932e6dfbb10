// What an earlier run has finished, checked.
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

// For each of the plan's files: its line in the journals, if they say that it is finished and the file in `folder` is
// as they say. Files not in `wanted` are not looked at.
std::vector<std::optional<FinishedFile>> find_finished(const Plan& plan, const std::vector<std::size_t>& wanted,
                                                       const std::string& folder,
                                                       const std::vector<FinishedFile>& journaled,
                                                       const ExecuteOptions& options);

// A run that was killed between its commit and its end leaves a complete output and the journals of it. Says whether
// that is so, and removes what is left then.
bool is_published(const Plan& plan, const std::string& out, const std::string& fingerprint,
                  const ExecuteOptions& options);

// The indexes of part `part` (1 to `parts`), ascending. Every file is in exactly one part; the parts' bytes are
// balanced: the largest file not yet given goes to the part that has least.
std::vector<std::size_t> share_of(std::span<const std::uint64_t> sizes, int part, int parts);

}  // namespace peft::execution
