#include "safetensors/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>

namespace peft::safetensors {
namespace {

// Blocks are added and never removed, so that the handler may walk them at any time without a lock.
struct Block {
  std::array<GuardSlot, 64> slots;
  std::atomic<Block*> next{nullptr};
};

Block first_block;
std::mutex registry;
std::once_flag installed;
struct sigaction previous {};
std::uintptr_t page_size = 4096;

// Only what a signal handler may do: atomics, mmap. The rest of the mapping is replaced as a whole: one page that
// cannot be read makes all of it useless, and one signal is enough.
bool replace_by_zeros(std::uintptr_t address) {
  for (Block* block = &first_block; block != nullptr; block = block->next.load(std::memory_order_acquire)) {
    for (GuardSlot& slot : block->slots) {
      const std::uintptr_t begin = slot.begin.load(std::memory_order_acquire);
      const std::uintptr_t end = slot.end.load(std::memory_order_relaxed);
      if (begin == 0 || address < begin || address >= end) continue;
      const std::uintptr_t page = address / page_size * page_size;
      slot.damaged.store(true, std::memory_order_release);
      // As a plain system call: thread sanitizer takes mmap() for a write to memory that other threads read.
      return ::syscall(SYS_mmap, page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != -1;
    }
  }
  return false;
}

void on_sigbus(int number, siginfo_t* information, void* context) {
  const int saved = errno;
  const bool handled = replace_by_zeros(reinterpret_cast<std::uintptr_t>(information->si_addr));
  errno = saved;
  if (handled) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(number, information, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(number);
  // The default: when this returns, the access faults again and ends the process.
  ::signal(SIGBUS, SIG_DFL);
}

void install() {
  page_size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &previous);
}

GuardSlot* take_slot() {
  const std::lock_guard lock(registry);
  for (Block* block = &first_block;;) {
    for (GuardSlot& slot : block->slots) {
      if (slot.taken) continue;
      slot.taken = true;
      return &slot;
    }
    if (block->next.load() == nullptr) block->next.store(new Block, std::memory_order_release);
    block = block->next.load();
  }
}

}  // namespace

GuardSlot* guard(std::uintptr_t begin, std::uintptr_t end) {
  std::call_once(installed, install);
  GuardSlot* slot = take_slot();
  slot->damaged.store(false);
  slot->end.store((end + page_size - 1) / page_size * page_size);
  slot->begin.store(begin, std::memory_order_release);
  return slot;
}

void unguard(GuardSlot* slot) {
  slot->begin.store(0, std::memory_order_release);
  const std::lock_guard lock(registry);
  slot->taken = false;
}

}  // namespace peft::safetensors
