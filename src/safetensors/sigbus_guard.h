// The SIGBUS handler behind Mapping.
#pragma once

#include <atomic>
#include <cstdint>

namespace peft::safetensors {

// A live mapping, as the handler sees it. begin is 0 while the slot is free.
struct GuardSlot {
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<bool> damaged{false};
  bool taken = false;  // under the registry's mutex
};

// Installs the handler at the first call. An address outside of all slots goes to the handler that was there before.
GuardSlot* guard(std::uintptr_t begin, std::uintptr_t end);
void unguard(GuardSlot* slot);  // before the range is unmapped

}  // namespace peft::safetensors
