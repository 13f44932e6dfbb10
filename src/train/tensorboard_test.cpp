#include "train/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace peft::train {
namespace {

// The bytes that the tensorboard package writes for the same event.
TEST(Tensorboard, events_are_those_of_the_real_package) {
  const std::string event = scalar_event(1.5, 300, {{"train/loss", 2.0}});
  const std::string wanted =
      std::string("\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0a", 18) + "train/loss" +
      std::string("\x15\x00\x00\x00\x40", 5);
  EXPECT_EQ(event, wanted);
}

TEST(Tensorboard, records_have_checksums) {
  // CRC-32C of "123456789" is 0xE3069283; turned by 15 bits and shifted: 0xC78AB4E5.
  const std::string record = event_record("123456789");
  ASSERT_EQ(record.size(), 8U + 4 + 9 + 4);
  std::uint32_t crc = 0;
  std::memcpy(&crc, record.data() + 21, sizeof crc);
  EXPECT_EQ(crc, ((0xE3069283U >> 15) | (0xE3069283U << 17)) + 0xA282EAD8U);
}

TEST(Tensorboard, a_file_begins_with_its_version) {
  const auto folder = std::filesystem::temp_directory_path() / ("peft-events-" + std::to_string(getpid()));
  std::string path;
  {
    EventFile file(folder.string());
    file.add(1, {{"train/loss", 2.5}, {"train/learning_rate", 1e-4}});
    path = file.path();
  }
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(bytes.find("brain.Event:2"), std::string::npos);
  EXPECT_NE(bytes.find("train/learning_rate"), std::string::npos);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace peft::train
