#include "execute/stream.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>

#include "base/thread_pool.h"
#include "execute/touch.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

class Hash {
 public:
  Hash() : state_(XXH3_createState()) {
    if (!state_) throw std::bad_alloc();
    XXH3_64bits_reset(state_.get());
  }
  void add(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  std::uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

std::uint64_t digest_of(std::span<const Run> runs) {
  Hash hash;
  for (const Run& run : runs) {
    for (const iovec& part : run.parts) hash.add(part.iov_base, part.iov_len);
  }
  return hash.digest();
}

// Bytes that are read at once: they are still in the second-level cache when they are hashed.
constexpr std::uint64_t kReadBytes = 512 * 1024;

template <class Visit>  // visit(bytes): the file's bytes [begin, end), piece by piece
void read_range(const NewFile& file, std::uint64_t begin, std::uint64_t end, std::vector<std::byte>& buffer,
                Visit&& visit) {
  buffer.resize(kReadBytes);
  for (std::uint64_t offset = begin; offset < end;) {
    const std::uint64_t bytes = std::min(kReadBytes, end - offset);
    file.read_at(offset, std::span(buffer).first(bytes));
    visit(std::span<const std::byte>(buffer).first(bytes));
    offset += bytes;
  }
}

[[noreturn]] void not_as_written(const NewFile& file, std::string_view tensor) {
  throw Error(ErrorCode::OUT_READBACK, {.file = file.path(),
                                        .tensor = std::string(tensor),
                                        .problem = "the file does not read back as it was written",
                                        .hint = "check the disk and the memory of this machine, then try again"});
}

// Makes the unit again to see which tensor is wrong.
[[noreturn]] void blame(const FileWork& work, const Unit& unit, const NewFile& file, Stage& stage) {
  std::vector<std::byte> expected, buffer;
  for (const Run& run : stage.make(work, unit)) {
    std::uint64_t offset = run.offset;
    for (const iovec& part : run.parts) {
      const auto* made = static_cast<const std::byte*>(part.iov_base);
      const std::uint64_t begin = work.layout.head.size() + offset;
      read_range(file, begin, begin + part.iov_len, buffer, [&](std::span<const std::byte> bytes) {
        const auto [wrong, _] = std::mismatch(bytes.begin(), bytes.end(), made);
        if (wrong != bytes.end()) {
          const std::uint64_t at = offset + static_cast<std::uint64_t>(wrong - bytes.begin());
          for_each_piece(work, unit, [&](const Piece& piece) {
            const std::uint64_t start = work.layout.begin[piece.tensor];
            if (start + piece.begin <= at && at < start + piece.end)
              not_as_written(file, work.tensor(piece.tensor).name);
          });
        }
        made += bytes.size();
        offset += bytes.size();
      });
    }
  }
  not_as_written(file, {});  // wrong the first time, right the second: still not to be trusted
}

std::uint64_t digest_in_file(const FileWork& work, const Unit& unit, const NewFile& file,
                             std::vector<std::byte>& buffer) {
  Hash hash;
  const auto add = [&](std::span<const std::byte> bytes) { hash.add(bytes.data(), bytes.size()); };
  const std::uint64_t data = work.layout.head.size();
  if (unit.family == Families::kNone) {
    read_range(file, data + unit.begin, data + unit.end, buffer, add);
  } else {
    for_each_piece(work, unit, [&](const Piece& piece) {
      const std::uint64_t start = data + work.layout.begin[piece.tensor];
      read_range(file, start + piece.begin, start + piece.end, buffer, add);
    });
  }
  return hash.digest();
}

}  // namespace

MergeError Stages::merge_error() const {
  MergeError all;
  for (const auto& stage : stages_) {
    if (!stage) continue;
    all.sampled += stage->merge_error().sampled;
    all.different += stage->merge_error().different;
    all.max_ulps = std::max(all.max_ulps, stage->merge_error().max_ulps);
  }
  return all;
}

Digests write_units(const FileWork& work, NewFile& file, Stages& stages, Monitor& monitor, bool want_digests) {
  const Touch touch(work);
  const std::string& head = work.layout.head;
  file.write_at(0, std::as_bytes(std::span(head)));
  monitor.add(head.size());
  Digests digests(want_digests ? work.units.size() : 0);
  const auto ahead = static_cast<std::size_t>(stages.threads());
  parallel_for(work.units.size(), stages.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    if (u < ahead) touch.prefetch(u);
    touch.prefetch(u + ahead);
    const std::span<const Run> runs = stages.of(worker).make(work, work.units[u]);
    if (want_digests) digests[u] = digest_of(runs);
    for (const Run& run : runs) file.writev_at(head.size() + run.offset, run.parts);
    touch.release(u);
    monitor.add(bytes_of(work, work.units[u]));
  });
  return digests;
}

void read_back(const FileWork& work, const NewFile& file, const Digests& digests, Stages& stages,
               const Monitor& monitor) {
  std::vector<std::vector<std::byte>> buffers(static_cast<std::size_t>(stages.threads()));
  bool head_is_right = true;
  read_range(file, 0, work.layout.head.size(), buffers[0],
             [&, at = std::size_t{0}](std::span<const std::byte> bytes) mutable {
               head_is_right &= std::memcmp(bytes.data(), work.layout.head.data() + at, bytes.size()) == 0;
               at += bytes.size();
             });
  if (!head_is_right) not_as_written(file, {});
  parallel_for(work.units.size(), stages.threads(), [&](std::size_t u, int worker) {
    monitor.check();
    const std::uint64_t digest = digest_in_file(work, work.units[u], file, buffers[static_cast<std::size_t>(worker)]);
    if (digest != digests[u]) blame(work, work.units[u], file, stages.of(worker));
  });
}

}  // namespace peft::execution
