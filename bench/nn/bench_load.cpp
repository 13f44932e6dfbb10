// Loading a checkpoint into a model that runs, beside reading its files into fresh memory: on huge pages, as the model
// has them, and on whatever malloc gives. The three take turns.
//
//   bench_load DIR [--rounds N] [--threads N]
//
// For each the smallest and the median time, for the two ways of reading the ratios of loading to them, smallest by
// smallest and the median of the rounds' own; and the anonymous memory that the model has after loading, the first of
// all.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/system.h"
#include "peft/nn/model.h"

namespace {

namespace fs = std::filesystem;

double once(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

std::vector<fs::path> weight_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  return files;
}

// One thread, one file after the other, in pieces of 8 MiB, into memory nobody has touched yet.
void read_all(const std::vector<fs::path>& files, bool huge_pages) {
  constexpr std::size_t kPiece = 8u << 20;
  for (const auto& file : files) {
    const std::size_t size = fs::file_size(file);
    const std::unique_ptr<char, void (*)(void*)> memory(static_cast<char*>(std::malloc(size)), std::free);
    if (huge_pages) peft::advise_huge_pages(memory.get(), size);
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    for (std::size_t at = 0; at < size;) {
      const ssize_t got = pread(fd, memory.get() + at, std::min(kPiece, size - at), static_cast<off_t>(at));
      if (got <= 0) std::exit(1);
      at += static_cast<std::size_t>(got);
    }
    close(fd);
  }
}

// A line of /proc/self/status in MiB.
double status_mib(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return std::strtod(line.c_str() + name.size() + 1, nullptr) / 1024;
  return 0;
}

double least(const std::vector<double>& times) { return *std::min_element(times.begin(), times.end()); }

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void print_read(const char* pages, const std::vector<double>& load, const std::vector<double>& read) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < load.size(); ++i) ratios.push_back(load[i] / read[i]);
  std::printf("read, %-10s  %7.1f ms least %7.1f median, load / read %.2f least, %.2f median\n", pages, least(read),
              median(read), least(load) / least(read), median(ratios));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::string folder = argv[1];
  int rounds = 5, threads = 1;
  for (int i = 2; i + 1 < argc; i += 2)
    (std::string(argv[i]) == "--rounds" ? rounds : threads) = std::atoi(argv[i + 1]);
  at::set_num_threads(threads);
  const auto files = weight_files(folder);
  double mib = 0;
  for (const auto& file : files) mib += static_cast<double>(fs::file_size(file)) / (1 << 20);
  mallopt(M_MMAP_THRESHOLD, 128 << 10);  // else malloc keeps what is freed, and it is not fresh any more
  read_all(files, true);                 // into the page cache
  const double before = status_mib("RssAnon");
  auto model = peft::nn::load_model(folder, {.threads = threads});
  const double anonymous = status_mib("RssAnon") - before;
  model.reset();
  std::vector<double> load, huge, plain;
  for (int round = 0; round < rounds; ++round) {
    load.push_back(once([&] { peft::nn::load_model(folder, {.threads = threads}); }));
    huge.push_back(once([&] { read_all(files, true); }));
    plain.push_back(once([&] { read_all(files, false); }));
  }
  std::printf("checkpoint %.1f MiB, anonymous memory of the model %.1f MiB\n", mib, anonymous);
  std::printf("load              %7.1f ms least %7.1f median\n", least(load), median(load));
  print_read("huge pages", load, huge);
  print_read("malloc's", load, plain);
  return 0;
}
