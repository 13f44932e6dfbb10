#include "faults/crash_disk.h"

#include <fcntl.h>

#include <algorithm>
#include <filesystem>

#include "faults/job.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kSector = 512;

// Puts bytes at an offset; with `torn`, only some sectors of them.
void put(std::string& data, std::uint64_t offset, const std::string& bytes, std::mt19937* torn) {
  if (data.size() < offset + bytes.size()) data.resize(offset + bytes.size());
  const bool reversed = torn != nullptr && (*torn)() % 2 == 0;  // the end may reach the disk before the beginning
  const std::size_t sectors = (bytes.size() + kSector - 1) / kSector;
  const std::size_t kept = torn == nullptr ? sectors : (*torn)() % (sectors + 1);
  for (std::size_t s = 0; s < kept; ++s) {
    const std::size_t at = (reversed ? sectors - 1 - s : s) * kSector;
    data.replace(offset + at, std::min(kSector, bytes.size() - at), bytes, at, kSector);
  }
}

}  // namespace

CrashDisk::CrashDisk(std::string root) : root_(std::move(root)), former_(replace(this)) {}
CrashDisk::~CrashDisk() { stop(); }
void CrashDisk::stop() {
  if (!stopped_) replace(former_);
  stopped_ = true;
}

CrashDisk::Place CrashDisk::place_of(const std::string& path) const {
  Place place{.folder = 0, .name = {}};
  const fs::path relative = fs::path(path).lexically_relative(root_);
  if (relative.empty() || *relative.begin() == "..") return {-1, {}};
  if (relative == ".") return {-2, {}};
  for (const fs::path& part : relative) {
    if (!place.name.empty()) place = {node_of(place), {}};
    place.name = part.string();
  }
  return place;
}

int CrashDisk::node_of(const Place& place) const {
  if (place.folder == -2) return 0;
  const auto folder = folders_.find(place.folder);
  if (folder == folders_.end()) return -1;
  const auto it = folder->second.find(place.name);
  return it == folder->second.end() ? -1 : it->second;
}

int CrashDisk::open(const char* path, int flags, mode_t mode) {
  const Place place = place_of(path);
  const bool is_new = (flags & O_CREAT) != 0 && !fs::exists(path);
  const int fd = SystemCalls::open(path, flags, mode);
  if (fd < 0) return fd;
  if (is_new) {
    is_folder_[++nodes_] = false;
    events_.push_back({What::make_file, nodes_, {}, place});
    apply(events_.back(), folders_);
  }
  open_[fd] = node_of(place);
  return fd;
}

int CrashDisk::close(int fd) {
  open_.erase(fd);
  return SystemCalls::close(fd);
}

ssize_t CrashDisk::pwritev(int fd, const iovec* parts, int count, off_t offset) {
  const ssize_t written = SystemCalls::pwritev(fd, parts, count, offset);
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
  bytes.resize(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));
  events_.push_back({What::write, open_[fd], {}, {}, static_cast<std::uint64_t>(offset), std::move(bytes)});
  return written;
}

int CrashDisk::fallocate(int fd, off_t size) {
  events_.push_back({What::size, open_[fd], {}, {}, static_cast<std::uint64_t>(size)});
  return SystemCalls::fallocate(fd, size);
}

int CrashDisk::fsync(int fd) {
  events_.push_back({is_folder_[open_[fd]] ? What::sync_folder : What::sync, open_[fd], {}, {}});
  return SystemCalls::fsync(fd);
}

int CrashDisk::fdatasync(int fd) {
  events_.push_back({What::sync, open_[fd], {}, {}});
  return SystemCalls::fdatasync(fd);
}

int CrashDisk::mkdir(const char* path, mode_t mode) {
  const int result = SystemCalls::mkdir(path, mode);
  if (result != 0) return result;
  is_folder_[++nodes_] = true;
  events_.push_back({What::make_folder, nodes_, {}, place_of(path)});
  apply(events_.back(), folders_);
  return 0;
}

int CrashDisk::rename(const char* from, const char* to, unsigned flags) {
  const int result = SystemCalls::rename(from, to, flags);
  if (result != 0) return result;
  const Place place = place_of(from);
  events_.push_back({What::rename, node_of(place), place, place_of(to)});
  apply(events_.back(), folders_);
  return 0;
}

int CrashDisk::remove(const char* path, int result) {
  if (result != 0) return result;
  const Place place = place_of(path);
  events_.push_back({What::remove, node_of(place), place, place});
  apply(events_.back(), folders_);
  return 0;
}
int CrashDisk::unlink(const char* path) { return remove(path, SystemCalls::unlink(path)); }
int CrashDisk::rmdir(const char* path) { return remove(path, SystemCalls::rmdir(path)); }

void CrashDisk::apply(const Event& event, Folders& folders) {
  if (event.what == What::rename || event.what == What::remove) {
    auto& names = folders[event.from.folder];
    const auto it = names.find(event.from.name);
    if (it != names.end() && it->second == event.node) names.erase(it);
  }
  if (event.what != What::remove) folders[event.to.folder][event.to.name] = event.node;
}

// Data are safe once their file is flushed, names once their folder is.
bool CrashDisk::is_durable(std::size_t event, std::size_t count) const {
  const Event& change = events_[event];
  const bool is_data = change.what == What::write || change.what == What::size;
  for (std::size_t later = event + 1; later < count; ++later) {
    const Event& sync = events_[later];
    if (is_data && sync.what == What::sync && sync.node == change.node) return true;
    if (!is_data && sync.what == What::sync_folder && sync.node == change.to.folder) return true;
  }
  return false;
}

void CrashDisk::restore(std::size_t count, Mode mode, std::mt19937& random) const {
  Folders folders;
  std::map<int, std::string> data;
  const std::size_t written = mode == Mode::ordered && count > 0 ? random() % count : 0;
  for (std::size_t e = 0; e < count; ++e) {
    const Event& event = events_[e];
    if (event.what == What::sync || event.what == What::sync_folder) continue;
    const bool durable = is_durable(e, count);
    const bool chosen = mode == Mode::ordered ? e < written : mode != Mode::drop && random() % 2 == 0;
    if (!durable && !chosen) continue;
    std::string& bytes = data[event.node];
    switch (event.what) {
      case What::write:
        put(bytes, event.offset, event.bytes, durable || mode != Mode::torn ? nullptr : &random);
        break;
      case What::size:
        bytes.resize(std::max<std::size_t>(bytes.size(), event.offset));
        break;
      default:
        apply(event, folders);
    }
  }
  write_out(folders, data, 0, root_);
}

void CrashDisk::write_out(const Folders& folders, const std::map<int, std::string>& data, int folder,
                          const std::string& path) const {
  const auto names = folders.find(folder);
  if (names == folders.end()) return;
  for (const auto& [name, node] : names->second) {
    const std::string inside = path + "/" + name;
    if (is_folder_.at(node)) {
      fs::create_directory(inside);
      write_out(folders, data, node, inside);
    } else {
      const auto bytes = data.find(node);
      write_file(inside, bytes == data.end() ? std::string() : bytes->second);
    }
  }
}

}  // namespace peft::faults
