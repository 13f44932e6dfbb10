// Images of safetensors files, good and bad, and folders for tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/error.h"
#include "peft/safetensors.h"

namespace peft::safetensors {

inline std::string length_bytes(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xFF);
  return bytes;
}

// The header's length, the header, and `data_bytes` bytes that count up.
inline std::string image(std::string_view json, std::size_t data_bytes = 0) {
  std::string bytes = length_bytes(json.size());
  bytes += json;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

// One tensor's entry: "name":{"dtype":...}.
inline std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                         std::string_view offsets) {
  return "\"" + std::string(name) + R"(":{"dtype":")" + std::string(dtype) + R"(","shape":)" + std::string(shape) +
         R"(,"data_offsets":)" + std::string(offsets) + "}";
}

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

inline std::shared_ptr<const TensorFile> parse(std::string_view bytes, const OpenOptions& options = {}) {
  return TensorFile::parse(bytes_of(bytes), "test.safetensors", options);
}

// The error that `action` throws, if it is one of ours.
inline std::optional<Error> error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

// Every expected part is in the message.
inline void expect_error(const std::optional<Error>& error, ErrorCode code, const std::vector<std::string>& parts) {
  ASSERT_TRUE(error.has_value()) << "accepted";
  EXPECT_EQ(info(error->code()).name, info(code).name) << error->what();
  for (const std::string& part : parts) {
    EXPECT_NE(std::string_view(error->what()).find(part), std::string_view::npos)
        << "no '" << part << "' in: " << error->what();
  }
}

// An empty folder of this test, removed afterwards.
class TestFolder {
 public:
  TestFolder() : path_(std::filesystem::temp_directory_path() / make_name()) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string operator/(std::string_view name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }
  std::string write(std::string_view name, std::string_view content) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << content;
    return (path_ / name).string();
  }

 private:
  static std::string make_name() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    static int number = 0;
    return std::string("peft-") + test->test_suite_name() + "-" + test->name() + "-" + std::to_string(::getpid()) +
           "-" + std::to_string(number++);
  }
  std::filesystem::path path_;
};

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace peft::safetensors
