// The kernels in memory: fused lora_B of experts and back, against memcpy of the same bytes on one thread.
//
//   bench_kernels [rounds] [case]      only the cases whose name has this text
//
// As execute() uses them: a slice is rendered into a small buffer that is used again and again. "to memory" then copies
// the buffer on, which is what a write does, and is the figure to compare with memcpy; "rendered" leaves it there.
// All candidates alternate; the best of all rounds counts.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "execute/copy/copy_ops.h"
#include "execute/copy/render.h"
#include "execute/merge/dora_row_scales.h"
#include "execute/run/unit.h"
#include "execute/run/unit_renderer.h"
#include "peft/plan.h"
#include "plan/members.h"
#include "results.h"

namespace {

using namespace peft;
using peft::execution::UnitRenderer;

// CPU time of this thread: on a machine that others use too, it says more than the clock.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Touched memory on large pages.
struct Memory {
  explicit Memory(std::size_t bytes) : size(bytes) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) std::abort();
    madvise(mapped, bytes, MADV_HUGEPAGE);
    std::memset(mapped, 1, bytes);
    data = static_cast<std::byte*>(mapped);
  }
  ~Memory() { munmap(data, size); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data = nullptr;
  std::size_t size;
};

struct Case {
  std::string name;
  Dtype dtype;
  std::int64_t experts, rank, out, layers;
  bool block_diagonal = false;
};

// Source and planned tensors of one direction, over one image in memory.
struct Job {
  std::vector<NewTensor> source;
  std::unique_ptr<Memory> image;
  Plan plan;
};

PlannedTensor planned(const std::string& name, Dtype dtype, std::int64_t rows, std::int64_t cols) {
  return {name, dtype, {rows, cols}, rows, cols, {}};
}

void open_image(Job& job) {
  const FileLayout layout = layout_file(job.source);
  job.image = std::make_unique<Memory>(layout.file_bytes());
  std::memcpy(job.image->data, layout.head.data(), layout.head.size());
  job.plan.sources.push_back(TensorFile::parse({job.image->data, layout.file_bytes()}, "memory"));
}

View view_of(const Job& job, const std::string& name) {
  const TensorFile& file = *job.plan.sources[0];
  const TensorInfo* found = file.find(name);
  if (found == nullptr) std::abort();
  return {0,
          static_cast<std::uint32_t>(found - file.tensors().data()),
          0,
          found->shape[0],
          found->shape[1],
          found->shape[1],
          1};
}

std::string name_of(std::int64_t layer, int half, std::int64_t e) { return fmt::format("{}.{}.{}", layer, half, e); }

Job fuse_job(const Case& c) {
  Job job;
  const int halves = c.block_diagonal ? 2 : 1;
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    for (int half = 0; half < halves; ++half) {
      for (std::int64_t e = 0; e < c.experts; ++e)
        job.source.push_back({name_of(layer, half, e), c.dtype, {c.out, c.rank}});
    }
  }
  open_image(job);
  PlannedFile& file = job.plan.files.emplace_back();
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    file.tensors.push_back(
        planned(fmt::format("{}.fused", layer), c.dtype, halves * c.out, halves * c.rank * c.experts));
    for (int half = 0; half < halves; ++half) {
      std::vector<plan::MemberView> columns;
      for (std::int64_t e = 0; e < c.experts; ++e)
        columns.push_back({view_of(job, name_of(layer, half, e)), 1, c.dtype});
      plan::append_members(file.tensors.back().blocks, {half * c.out, half * c.rank * c.experts, c.experts, 0, 1},
                           columns);
    }
  }
  return job;
}

Job unfuse_job(const Case& c) {
  Job job;
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    job.source.push_back({fmt::format("{}.fused", layer), c.dtype, {c.out, c.rank * c.experts}});
  }
  open_image(job);
  PlannedFile& file = job.plan.files.emplace_back();
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    const View fused = view_of(job, fmt::format("{}.fused", layer));
    for (std::int64_t e = 0; e < c.experts; ++e) {
      file.tensors.push_back(planned(name_of(layer, 0, e), c.dtype, c.out, c.rank));
      file.tensors.back().blocks.push_back({0, 0, 1, fused.col_range(e, c.rank, c.experts), 1});
      file.tensors.back().column_group = static_cast<std::int32_t>(layer);
    }
  }
  return job;
}

double best_of(const std::vector<std::function<void()>>& candidates, int rounds, std::vector<double>& best) {
  best.assign(candidates.size(), 1e9);
  for (int round = 0; round <= rounds; ++round) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const double start = now();
      candidates[i]();
      if (round > 0) best[i] = std::min(best[i], now() - start);
    }
  }
  return best[0];
}

void measure(const std::string& title, const Case& c, const Job& job, int rounds) {
  const execution::FileWork work = execution::make_work(job.plan, job.plan.files[0]);
  const std::size_t written = work.layout.data_bytes,
                    read = job.plan.sources[0]->file_size() - job.plan.sources[0]->data_offset();
  const Memory out(written);
  const std::byte* source = job.image->data;
  execution::MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  const auto render = [&](bool copy) {
    for (const execution::Unit& unit : work.units) {
      for (const execution::FileExtent& extent : renderer.make(work, unit)) {
        std::byte* to = out.data + extent.offset;
        for (const iovec& part : extent.parts) {
          if (copy) std::memcpy(to, part.iov_base, part.iov_len);
          to += part.iov_len;
        }
      }
    }
  };
  std::vector<double> best;
  best_of({[&] {  // what has to be moved at least: the input, and the zeros that are added
             std::memcpy(out.data, source, std::min(read, written));
             if (written > read) std::memset(out.data + read, 0, written - read);
           },
           [&] { render(false); }, [&] { render(true); }},
          rounds, best);
  peft::bench::record({"kernels", fmt::format("{}, {}", title, c.name), "memcpy", best[1] * 1e3, best[0] * 1e3, "ms",
                       best[0] / best[1]});
  fmt::print("{:<8} {:<28} {:6.0f} MB  memcpy {:5.1f} GB/s   rendered {:4.2f}   to memory {:4.2f}\n", title, c.name,
             static_cast<double>(written) / 1e6, static_cast<double>(written) / best[0] / 1e9, best[0] / best[1],
             best[0] / best[2]);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  const Case cases[] = {
      {"bf16 E128 r8 out2048", Dtype::bf16, 128, 8, 2048, 32},
      {"bf16 E128 r32 out2048", Dtype::bf16, 128, 32, 2048, 8},
      {"bf16 E256 r16 out7168", Dtype::bf16, 256, 16, 7168, 2},
      {"bf16 E384 r8 out2048", Dtype::bf16, 384, 8, 2048, 10},
      {"bf16 E60 r8 out1408", Dtype::bf16, 60, 8, 1408, 80},
      {"bf16 E8 r16 out4096", Dtype::bf16, 8, 16, 4096, 80},
      {"fp32 E128 r8 out2048", Dtype::f32, 128, 8, 2048, 16},
      {"bf16 E128 r8 gate|up 768", Dtype::bf16, 128, 8, 768, 32, true},
  };
  for (const Case& c : cases) {
    if (argc > 2 && c.name.find(argv[2]) == std::string::npos) continue;
    measure("fuse", c, fuse_job(c), rounds);
    if (!c.block_diagonal) measure("unfuse", c, unfuse_job(c), rounds);
  }
  return 0;
}
