#include "safetensors/reading/mapping.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "peft/error.h"

namespace peft::safetensors {
// A live mapping, as the SIGBUS handler sees it. begin is 0 while the slot is free.
struct GuardSlot {
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<bool> damaged{false};
  bool taken = false;  // under the registry's mutex
};

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
std::uintptr_t handler_page = 4096;

// It does only what a signal handler may do: atomics and mmap. It replaces the rest of the mapping as a whole: one page
// that cannot be read makes all of it useless, and so one signal is enough.
bool replace_by_zeros(std::uintptr_t address) {
  for (Block* block = &first_block; block != nullptr; block = block->next.load(std::memory_order_acquire)) {
    for (GuardSlot& slot : block->slots) {
      const std::uintptr_t begin = slot.begin.load(std::memory_order_acquire);
      const std::uintptr_t end = slot.end.load(std::memory_order_relaxed);
      if (begin == 0 || address < begin || address >= end) continue;
      const std::uintptr_t page = address / handler_page * handler_page;
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
  handler_page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
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

constexpr std::uint64_t kMappedAtOnce = 64 << 10;  // Linux's fault_around_bytes

std::size_t page_size() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

// Installs the handler at the first call. An address outside of all slots goes to the handler that was there before.
GuardSlot* guard(std::uintptr_t begin, std::uintptr_t end) {
  std::call_once(installed, install);
  GuardSlot* slot = take_slot();
  slot->damaged.store(false);
  slot->end.store((end + handler_page - 1) / handler_page * handler_page);
  slot->begin.store(begin, std::memory_order_release);
  return slot;
}

// Must be called before the range is unmapped.
void unguard(GuardSlot* slot) {
  slot->begin.store(0, std::memory_order_release);
  const std::lock_guard lock(registry);
  slot->taken = false;
}

}  // namespace

Mapping::Mapping(int fd, std::size_t size, const std::string& path) : size_(size) {
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    at(path).fail(
        ErrorCode::IO_OPEN,
        {.problem = "the file cannot be mapped", .got = std::strerror(errno), .hint = "copy it to a local disk"});
  }
  data_ = static_cast<std::byte*>(data);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  slot_ = guard(begin, begin + size);
}

Mapping::~Mapping() {
  unguard(slot_);
  ::munmap(data_, size_);
}

bool Mapping::damaged() const { return slot_->damaged.load(std::memory_order_acquire); }

void Mapping::require_undamaged(const std::string& path) const {
  if (!damaged()) return;
  at(path).fail(ErrorCode::IO_CHANGED, {.problem = "a part of the file could not be read",
                                        .hint = "the file shrank for a time, or its disk or network failed"});
}

// Touches each stretch that the kernel maps at once. MADV_POPULATE_READ would take twice the time, because it looks at
// every page again.
void Mapping::prefetch(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_);
  while (begin < end) {
    static_cast<void>(*static_cast<const volatile std::byte*>(data_ + begin));
    begin = (begin / kMappedAtOnce + 1) * kMappedAtOnce;
  }
}

void Mapping::release(std::uint64_t begin, std::uint64_t end) const {
  end = std::min<std::uint64_t>(end, size_) / page_size() * page_size();
  begin = std::min<std::uint64_t>(begin, size_);
  begin = (begin + page_size() - 1) / page_size() * page_size();
  if (begin < end) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace peft::safetensors
