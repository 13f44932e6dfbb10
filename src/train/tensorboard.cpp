#include "train/tensorboard.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "peft/error.h"

namespace peft::train {
namespace {

// CRC-32C (Castagnoli), reflected.
constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78U : 0);
    table[i] = value;
  }
  return table;
}

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto kTable = crc_table();
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU];
  return ~crc;
}

// Records hold the checksum turned and shifted, so that a checksum of checksums is of use.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

template <class Value>
std::string little_endian(Value value) {
  static_assert(std::endian::native == std::endian::little);
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
  return bytes + static_cast<char>(value);
}

enum class Wire : std::uint8_t { varint = 0, eight_bytes = 1, delimited = 2, four_bytes = 5 };

std::string key(int field, Wire wire) {
  return varint((static_cast<std::uint64_t>(field) << 3) | static_cast<std::uint64_t>(wire));
}
std::string message(int field, std::string_view content) {
  return key(field, Wire::delimited) + varint(content.size()) + std::string(content);
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

std::string event_record(std::string_view event) {
  const std::string length = little_endian(static_cast<std::uint64_t>(event.size()));
  return length + little_endian(masked_crc(length)) + std::string(event) + little_endian(masked_crc(event));
}

std::string scalar_event(double wall_time, std::int64_t step,
                         const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars) {
    const std::string number = key(2, Wire::four_bytes) + little_endian(static_cast<float>(value));
    summary += message(1, message(1, name) + number);
  }
  return key(1, Wire::eight_bytes) + little_endian(wall_time) + key(2, Wire::varint) +
         varint(static_cast<std::uint64_t>(step)) + message(5, summary);
}

EventFile::EventFile(const std::string& folder) {
  std::filesystem::create_directories(folder);
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const double time = now();
  path_ = fmt::format("{}/events.out.tfevents.{:010.0f}.{}.{}", folder, std::floor(time), host.data(), getpid());
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0)
    throw Error(ErrorCode::IO_WRITE,
                {.file = path_, .problem = std::string("cannot be made: ") + std::strerror(errno)});
  write(key(1, Wire::eight_bytes) + little_endian(time) + message(3, "brain.Event:2"));
}

EventFile::~EventFile() {
  if (fd_ >= 0) ::close(fd_);
}

void EventFile::write(const std::string& event) {
  const std::string record = event_record(event);
  for (std::size_t done = 0; done < record.size();) {
    const ssize_t written = ::write(fd_, record.data() + done, record.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0)
      throw Error(ErrorCode::IO_WRITE,
                  {.file = path_, .problem = std::string("cannot be written: ") + std::strerror(errno)});
    done += static_cast<std::size_t>(written);
  }
}

void EventFile::add(std::int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  write(scalar_event(now(), step, scalars));
}

}  // namespace peft::train
