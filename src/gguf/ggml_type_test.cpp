#include "gguf/ggml_type.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "gguf/gguf_file.h"
#include "test_paths.h"

namespace peft::gguf {
namespace {

std::vector<float> floats(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST(Q80, PacksAsGgufPyDoes) {
  const auto file = GgufFile::open(std::string(PEFT_SOURCE_DIR) + "/tests/gguf/q8_0.gguf");
  const auto values = floats(file->bytes(*file->find("values")));
  const auto expected = file->bytes(*file->find("packed"));
  ASSERT_EQ(values.size() / kQ8Elements * kQ8Bytes, expected.size());
  std::vector<std::byte> packed(expected.size());
  ASSERT_TRUE(quantise_q8_0(values, packed.data()));
  for (std::size_t i = 0; i < packed.size(); ++i) ASSERT_EQ(packed[i], expected[i]) << "byte " << i;
}

TEST(Q80, UnpacksToTheNearestCode) {
  const auto file = GgufFile::open(std::string(PEFT_SOURCE_DIR) + "/tests/gguf/q8_0.gguf");
  const auto values = floats(file->bytes(*file->find("values")));
  std::vector<float> unpacked(values.size());
  dequantise_q8_0(file->bytes(*file->find("packed")), unpacked.data());
  for (std::size_t block = 0; block < values.size(); block += kQ8Elements) {
    float largest = 0;
    for (std::size_t i = 0; i < kQ8Elements; ++i) largest = std::max(largest, std::abs(values[block + i]));
    // Half a code, and the rounding of the scale: 2^-11 of it, or half of F16's smallest number, for up to 127 codes.
    const float bound = largest / 127 * 0.5F + largest * 0x1p-11F + 127 * 0x1p-25F;
    for (std::size_t i = 0; i < kQ8Elements; ++i)
      EXPECT_NEAR(unpacked[block + i], values[block + i], bound) << block + i;
  }
}

TEST(Q80, RefusesAScaleThatDoesNotFit) {
  std::vector<float> values(kQ8Elements, 1);
  std::vector<std::byte> packed(kQ8Bytes);
  values[5] = 65504.0F * 127 * 1.01F;
  EXPECT_FALSE(quantise_q8_0(values, packed.data()));
  values[5] = 65504.0F * 127;
  EXPECT_TRUE(quantise_q8_0(values, packed.data()));
}

}  // namespace
}  // namespace peft::gguf
