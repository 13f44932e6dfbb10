// A model of what a power cut leaves. Calls go to the real file system and are noted; afterwards any state can be made
// in which a crash between two of them may have left the disk: what was flushed is there, of the rest anything may be.
#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/system.h"

namespace peft::faults {

class CrashDisk final : public SystemCalls {
 public:
  // How unflushed changes fare.
  enum class Mode {
    drop,     // none is there
    subset,   // each is there or not, in any combination
    torn,     // as subset, and of each write only some sectors
    ordered,  // all up to a moment before the crash, as if the disk were slow
  };

  explicit CrashDisk(std::string root);  // everything below it is modelled
  ~CrashDisk() override;
  CrashDisk(const CrashDisk&) = delete;
  CrashDisk& operator=(const CrashDisk&) = delete;

  void stop();  // the real calls again
  std::size_t events() const { return events_.size(); }
  // Makes the state after a crash that followed the first `count` events. The root must be empty but for what was
  // there.
  void restore(std::size_t count, Mode mode, std::mt19937& random) const;

  int open(const char* path, int flags, mode_t mode) override;
  int close(int fd) override;
  ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset) override;
  int fallocate(int fd, off_t size) override;
  int fsync(int fd) override;
  int fdatasync(int fd) override;
  int mkdir(const char* path, mode_t mode) override;
  int rename(const char* from, const char* to, unsigned flags) override;
  int unlink(const char* path) override;
  int rmdir(const char* path) override;

 private:
  enum class What { write, size, sync, sync_folder, make_file, make_folder, rename, remove };
  struct Place {
    int folder = 0;
    std::string name;
  };
  struct Event {
    What what;
    int node;  // the file or folder
    Place from, to;
    std::uint64_t offset = 0;
    std::string bytes{};
  };
  using Folders = std::map<int, std::map<std::string, int>>;

  Place place_of(const std::string& path) const;
  int node_of(const Place& place) const;
  int remove(const char* path, int result);
  bool is_durable(std::size_t event, std::size_t count) const;
  static void apply(const Event& event, Folders& folders);
  void write_out(const Folders& folders, const std::map<int, std::string>& data, int folder,
                 const std::string& path) const;

  std::string root_;
  std::vector<Event> events_;
  Folders folders_;  // as they are now
  std::map<int, bool> is_folder_{{0, true}};
  std::map<int, int> open_;  // descriptor -> node
  int nodes_ = 0;
  SystemCalls* former_;
  bool stopped_ = false;
};

}  // namespace peft::faults
