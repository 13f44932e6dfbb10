// The least input and output of a conversion, with nothing computed: what is left of `cp`'s time is all there is for
// the rest.
//
//   bench_least_io IN OUT BYTES THREADS
//
// Reads all of IN (mapped, one line of the cache after the other, let go) and writes BYTES to OUT, 1 MiB at a time,
// each from the same memory. One system call for what `peft convert` needs one for.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20, kPage = 4096, kLine = 64, kMappedAtOnce = std::size_t{64} << 10;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

// Bytes [begin, end) of the input: mapped, then read.
std::uint64_t read_lines(const std::uint8_t* data, std::size_t begin, std::size_t end) {
  std::uint64_t sum = 0;
  for (const std::size_t step : {kMappedAtOnce, kLine}) {
    for (std::size_t at = begin; at < end; at += step) sum += static_cast<const volatile std::uint8_t*>(data)[at];
  }
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return std::puts("bench_least_io IN OUT BYTES THREADS"), argc == 1 ? 0 : 2;  // alone in `make bench`
  const int in = ::open(argv[1], O_RDONLY), out = ::open(argv[2], O_RDWR | O_CREAT | O_EXCL, 0666);
  struct stat status {};
  if (in < 0 || out < 0 || ::fstat(in, &status) != 0) fail("open");
  const std::size_t size = static_cast<std::size_t>(status.st_size), bytes = std::strtoull(argv[3], nullptr, 10);
  if (::fallocate(out, 0, 0, static_cast<off_t>(bytes)) != 0) fail("fallocate");
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, in, 0);
  if (mapped == MAP_FAILED) fail("mmap");
  auto* data = static_cast<std::uint8_t*>(mapped);
  const std::size_t blocks = (bytes + kBlock - 1) / kBlock;
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> sum{0};
  const auto work = [&] {
    const std::vector<std::uint8_t> block(kBlock, 1);
    for (std::size_t b = next++; b < blocks; b = next++) {
      const auto share = [&](std::size_t count) {
        return count == blocks ? size : size / blocks * count / kPage * kPage;
      };
      const std::size_t begin = share(b), end = share(b + 1), count = std::min(kBlock, bytes - b * kBlock);
      sum += read_lines(data, begin, end);
      if (::pwrite(out, block.data(), count, static_cast<off_t>(b * kBlock)) != static_cast<ssize_t>(count))
        fail("pwrite");
      ::madvise(data + begin, end - begin, MADV_DONTNEED);
    }
  };
  std::vector<std::jthread> others(static_cast<std::size_t>(std::max(std::atoi(argv[4]), 1) - 1));
  for (auto& thread : others) thread = std::jthread(work);
  work();
  others.clear();
  return ::close(out) == 0 && sum != 1 ? 0 : 1;
}
