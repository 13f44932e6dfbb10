// What no merge can be faster than on this machine, beside cp of the same bytes: the system calls that map all of the
// base and write as much, and the dot products, in registers, with nothing loaded or rounded.
//
//   bench_merge_floor BASE OUT [ROUNDS]
//
// BASE is bf16 and in the page cache (bench_merge DIR leaves DIR/base.safetensors). Reading the base's lines may go on
// while the arithmetic does: the larger of both counts. Two threads halve all but the writing, which takes turns in the
// kernel.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "execute/kernels/bf16_pairs.h"

namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20, kMappedAtOnce = std::size_t{64} << 10, kLine = 64;

double wall() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double seconds(const std::function<void()>& work) {
  const double before = wall();
  work();
  return wall() - before;
}

struct Base {
  const volatile char* data = nullptr;
  std::size_t size = 0;  // whole blocks
};

// Maps the base block by block, reads every `step`th byte of it, writes as much, and lets it go.
void pass(const Base& base, std::size_t step, int out) {
  const std::vector<char> made(2 * kBlock, 1);
  const char* block = made.data() + (kLine - reinterpret_cast<std::uintptr_t>(made.data()) % kLine);
  for (std::size_t at = 0; at + kBlock <= base.size; at += kBlock) {
    for (std::size_t byte = 0; byte < kBlock; byte += kMappedAtOnce) static_cast<void>(base.data[at + byte]);
    for (std::size_t byte = 0; byte < kBlock && step < kMappedAtOnce; byte += step)
      static_cast<void>(base.data[at + byte]);
    if (out >= 0 && ::pwrite(out, block, kBlock, static_cast<off_t>(at)) != static_cast<ssize_t>(kBlock)) std::abort();
    ::madvise(const_cast<char*>(base.data + at), kBlock, MADV_DONTNEED);
  }
}

#if PEFT_HAS_PAIRS

constexpr int kSums = 16;  // side by side: none waits for the one before

PEFT_PAIRS_TARGET void dot_products(std::size_t count) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  __m512i left = _mm512_set1_epi32(0x3C003C00), right = left;
  for (std::size_t i = 0; i < count / kSums; ++i) {
    asm volatile("" : "+v"(left), "+v"(right));
#pragma GCC unroll 16
    for (__m512& sum : sums) sum = peft::execution::add_pair(sum, left, right);
  }
  for (__m512& sum : sums) asm volatile("" ::"v"(sum));
}

PEFT_PAIRS_TARGET void multiply_adds(std::size_t count) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  __m512 left = _mm512_set1_ps(0x1p-7F), right = left;
  for (std::size_t i = 0; i < count / kSums; ++i) {
    asm volatile("" : "+v"(left), "+v"(right));
#pragma GCC unroll 16
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(left, right, sum);
  }
  for (__m512& sum : sums) asm volatile("" ::"v"(sum));
}

#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return fmt::print("bench_merge_floor BASE OUT [ROUNDS]\n"), argc == 1 ? 0 : 2;  // alone in `make bench`
  const std::string in = argv[1], out = argv[2];
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 3, fd = ::open(in.c_str(), O_RDONLY);
  struct stat status {};
  if (fd < 0 || ::fstat(fd, &status) != 0) return std::perror(in.c_str()), 1;
  const std::size_t size = static_cast<std::size_t>(status.st_size) / kBlock * kBlock;
  const Base base{static_cast<const char*>(::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0)), size};
  const auto least = [&](const std::function<double()>& measure) {
    double best = 1e9;
    for (int round = 0; round < 2 * rounds; ++round) best = std::min(best, measure());
    return best * 1e3;
  };
  const double cp = least([&] {
    ::unlink(out.c_str());
    ::sync();
    return seconds([&] {
      if (std::system(fmt::format("cp {} {}", in, out).c_str()) != 0) std::abort();
    });
  });
  const auto mapping = [&](std::size_t step) { return least([&] { return seconds([&] { pass(base, step, -1); }); }); };
  const double map = mapping(kMappedAtOnce), read = mapping(kLine) - map;
  const double io = least([&] {
    ::unlink(out.c_str());
    ::sync();
    const int file = ::open(out.c_str(), O_RDWR | O_CREAT | O_EXCL, 0666);
    if (file < 0 || ::fallocate(file, 0, 0, static_cast<off_t>(size)) != 0) std::abort();
    const double time = seconds([&] { pass(base, kMappedAtOnce, file); });
    ::close(file);
    return time;
  });
  fmt::print("{:.0f} MB: cp {:.0f} ms; mapping {:.0f}, writing {:.0f}, reading {:.0f}\n",
             static_cast<double>(size) / 1e6, cp, map, io - map, read);
#if PEFT_HAS_PAIRS
  if (!peft::execution::has_pair_products()) return 0;
  for (const std::size_t rank : {8, 16, 32, 64}) {
    const std::size_t vectors = size / 2 / peft::execution::kPairLanes;
    const auto print = [&](const char* name, const std::function<void()>& work) {
      const double arithmetic = least([&] { return seconds(work); }), all = io + std::max(read, arithmetic);
      fmt::print("  rank {:2}, {:<13} {:4.0f} ms: at most {:.2f} x cp, two threads {:.2f}\n", rank, name, arithmetic,
                 cp / all, cp / std::max(io - map, all / 2));
    };
    // One more multiply-add adds the product to the weight.
    print("dot products", [&] { dot_products(vectors * rank / 2), multiply_adds(vectors); });
    print("multiply-adds", [&] { multiply_adds(vectors * (rank + 1)); });
  }
#endif
  ::unlink(out.c_str());
  return 0;
}
