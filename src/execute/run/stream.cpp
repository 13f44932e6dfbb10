#include "execute/run/stream.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/system.h"
#include "execute/resume/fingerprint.h"
#include "execute/run/page_schedule.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

std::uint64_t digest_of(std::span<const FileExtent> extents) {
  Hash hash;
  for (const FileExtent& extent : extents) {
    for (const iovec& part : extent.parts) hash.add(part.iov_base, part.iov_len);
  }
  return hash.digest();
}

// Bytes that are read at once. They are still in the second-level cache when they are hashed.
constexpr std::uint64_t kReadBytes = 512 * 1024;

template <class Visit>  // visit(bytes) gets the file's bytes [begin, end), part by part
void read_range(const ReadAt& file, std::uint64_t begin, std::uint64_t end, std::vector<std::byte>& buffer,
                Visit&& visit) {
  buffer.resize(kReadBytes);
  for (std::uint64_t offset = begin; offset < end;) {
    const std::uint64_t bytes = std::min(kReadBytes, end - offset);
    file(offset, std::span(buffer).first(bytes));
    visit(std::span<const std::byte>(buffer).first(bytes));
    offset += bytes;
  }
}

ReadAt reader(const NewFile& file) {
  return [&file](std::uint64_t offset, std::span<std::byte> bytes) { file.read_at(offset, bytes); };
}

[[noreturn]] void not_as_written(const NewFile& file, std::string_view tensor) {
  throw Error(ErrorCode::OUT_READBACK, {.file = file.path(),
                                        .tensor = std::string(tensor),
                                        .problem = "the file does not read back as it was written",
                                        .hint = "check the disk and the memory of this machine, then try again"});
}

// Renders the unit again to find the tensor that differs, and throws.
[[noreturn]] void blame(const FileWork& work, const Unit& unit, const NewFile& file, UnitRenderer& renderer) {
  std::vector<std::byte> expected, buffer;
  for (const FileExtent& extent : renderer.make(work, unit)) {
    std::uint64_t offset = extent.offset;
    for (const iovec& part : extent.parts) {
      const auto* made = static_cast<const std::byte*>(part.iov_base);
      const std::uint64_t begin = work.layout.head.size() + offset;
      read_range(reader(file), begin, begin + part.iov_len, buffer, [&](std::span<const std::byte> bytes) {
        const auto [wrong, _] = std::mismatch(bytes.begin(), bytes.end(), made);
        if (wrong != bytes.end()) {
          const std::uint64_t at = offset + static_cast<std::uint64_t>(wrong - bytes.begin());
          for_each_slice(work, unit, [&](const TensorSlice& slice) {
            const std::uint64_t start = work.layout.begin[slice.tensor];
            if (start + slice.begin <= at && at < start + slice.end)
              not_as_written(file, work.tensor(slice.tensor).name);
          });
        }
        made += bytes.size();
        offset += bytes.size();
      });
    }
  }
  not_as_written(file, {});  // it differed the first time and not the second: still not to be trusted
}

std::uint64_t digest_in_file(const FileWork& work, const Unit& unit, const ReadAt& file,
                             std::vector<std::byte>& buffer) {
  Hash hash;
  const auto add = [&](std::span<const std::byte> bytes) { hash.add(bytes.data(), bytes.size()); };
  const std::uint64_t data = work.layout.head.size();
  if (unit.group == ColumnGroups::kNone) {
    read_range(file, data + unit.begin, data + unit.end, buffer, add);
  } else {
    for_each_slice(work, unit, [&](const TensorSlice& slice) {
      const std::uint64_t start = data + work.layout.begin[slice.tensor];
      read_range(file, start + slice.begin, start + slice.end, buffer, add);
    });
  }
  return hash.digest();
}

}  // namespace

MergeError UnitRenderers::merge_error() const {
  MergeError all;
  for (const auto& renderer : renderers_) {
    if (!renderer) continue;
    all.sampled += renderer->merge_error().sampled;
    all.different += renderer->merge_error().different;
    all.max_ulps = std::max(all.max_ulps, renderer->merge_error().max_ulps);
  }
  return all;
}

PackingLoss UnitRenderers::take_packing_loss() {
  PackingLoss all;
  for (const auto& renderer : renderers_)
    if (renderer) all.add(renderer->take_packing_loss());
  return all;
}

Digests write_units(const FileWork& work, NewFile& file, UnitRenderers& renderers, Monitor& monitor,
                    bool want_digests) {
  const PageSchedule touch(work);
  const std::string& head = work.layout.head;
  file.write_at(0, std::as_bytes(std::span(head)));
  monitor.add(head.size());
  Digests digests(want_digests ? work.units.size() : 0);
  const auto ahead = static_cast<std::size_t>(renderers.threads());
  parallel_for(work.units.size(), renderers.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    if (u < ahead) touch.prefetch(u);
    touch.prefetch(u + ahead);
    const std::span<const FileExtent> extents = renderers.of(worker).make(work, work.units[u]);
    if (want_digests) digests[u] = digest_of(extents);
    for (const FileExtent& extent : extents) file.writev_at(head.size() + extent.offset, extent.parts);
    touch.release(u);
    monitor.add(bytes_of(work, work.units[u]));
  });
  return digests;
}

void render_units(const FileWork& work, std::span<std::byte> data, UnitRenderers& renderers, Monitor& monitor) {
  const PageSchedule touch(work);
  const auto ahead = static_cast<std::size_t>(renderers.threads());
  parallel_for(work.units.size(), renderers.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    if (u < ahead) touch.prefetch(u);
    touch.prefetch(u + ahead);
    for (const FileExtent& extent : renderers.of(worker).make(work, work.units[u])) {
      std::byte* to = data.data() + extent.offset;
      for (const iovec& part : extent.parts) {
        std::memcpy(to, part.iov_base, part.iov_len);
        to += part.iov_len;
      }
    }
    touch.release(u);
    monitor.add(bytes_of(work, work.units[u]));
  });
}

Digests digests_in(const FileWork& work, const ReadAt& file, UnitRenderers& renderers, Monitor& monitor) {
  std::vector<std::vector<std::byte>> buffers(static_cast<std::size_t>(renderers.threads()));
  Digests digests(work.units.size());
  parallel_for(work.units.size(), renderers.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    digests[u] = digest_in_file(work, work.units[u], file, buffers[static_cast<std::size_t>(worker)]);
    monitor.add(bytes_of(work, work.units[u]));
  });
  return digests;
}

bool has_head(const FileWork& work, const ReadAt& file) {
  std::vector<std::byte> buffer;
  const auto* expected = reinterpret_cast<const std::byte*>(work.layout.head.data());
  bool same = true;
  read_range(file, 0, work.layout.head.size(), buffer, [&](std::span<const std::byte> bytes) {
    same = same && std::equal(bytes.begin(), bytes.end(), expected);
    expected += bytes.size();
  });
  return same;
}

std::uint64_t digest_of(const Digests& digests) {
  Hash hash;
  hash.add(digests.data(), digests.size() * sizeof digests[0]);
  return hash.digest();
}

void read_back(const FileWork& work, const NewFile& file, const Digests& digests, UnitRenderers& renderers,
               const Monitor& monitor) {
  const ReadAt read = reader(file);
  if (!has_head(work, read)) not_as_written(file, {});
  std::vector<std::vector<std::byte>> buffers(static_cast<std::size_t>(renderers.threads()));
  parallel_for(work.units.size(), renderers.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    const std::uint64_t digest = digest_in_file(work, work.units[u], read, buffers[static_cast<std::size_t>(worker)]);
    if (digest != digests[u]) blame(work, work.units[u], file, renderers.of(worker));
  });
}

void Monitor::check() const {
  if (options_.cancel == nullptr || !*options_.cancel) return;
  throw Error(ErrorCode::INTERRUPTED, {.problem = "stopped before the output was complete"});
}

void Monitor::add(std::uint64_t bytes) {
  const std::uint64_t done = done_ += bytes;
  if (options_.progress) options_.progress(done, total_);
}

}  // namespace peft::execution
