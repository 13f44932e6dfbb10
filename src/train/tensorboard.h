// Event files that TensorBoard reads: one number under one name for a step.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace peft::train {

// One record: its length, a checksum of that, the event, a checksum of it.
std::string event_record(std::string_view event);
// Scalars of one step as an event (a protobuf message of tensorboard/compat/proto/event.proto).
std::string scalar_event(double wall_time, std::int64_t step,
                         const std::vector<std::pair<std::string, double>>& scalars);

class EventFile {
 public:
  // A new file in `folder`, which is made where it is not there.
  explicit EventFile(const std::string& folder);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;
  void add(std::int64_t step, const std::vector<std::pair<std::string, double>>& scalars);  // throws IO_WRITE
  const std::string& path() const { return path_; }

 private:
  void write(const std::string& event);
  std::string path_;
  int fd_ = -1;
};

}  // namespace peft::train
