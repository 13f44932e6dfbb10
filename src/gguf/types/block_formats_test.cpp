#include "gguf/types/block_formats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gguf/gguf_file.h"
#include "support/every_target.h"
#include "test_paths.h"

namespace peft::gguf {
namespace {

std::shared_ptr<const GgufFile> recorded(const std::string& name) {
  return GgufFile::open(std::string(PEFT_SOURCE_DIR) + "/tests/gguf/" + name);
}

std::vector<float> floats(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class BlockFormats : public execution::EveryTarget {};

TEST_P(BlockFormats, ValuesAreThoseOfGgufPy) {
  const auto file = recorded("blocks.gguf");
  for (const BlockFormat& format : block_formats()) {
    const std::string name(info(format.type).name);
    ASSERT_NE(file->find(name), nullptr) << name;
    const auto blocks = file->bytes(*file->find(name));
    const auto expected = floats(file->bytes(*file->find(name + ".values")));
    ASSERT_EQ(blocks.size() / info(format.type).block_bytes * static_cast<std::size_t>(info(format.type).block),
              expected.size());
    std::vector<float> values(expected.size(), std::numeric_limits<float>::quiet_NaN());
    unpack_blocks(format.type, blocks, values.data());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(std::memcmp(&values[i], &expected[i], sizeof(float)), 0)
          << name << ", element " << i << ": " << values[i] << ", not " << expected[i];
  }
}

TEST_P(BlockFormats, PackAsGgufPyDoes) {
  const auto file = recorded("packed.gguf");
  const auto values = floats(file->bytes(*file->find("values")));
  std::size_t compared = 0;
  for (const BlockFormat& format : block_formats()) {
    if (!can_pack(format.type)) continue;
    const std::string name(info(format.type).name);
    const auto expected = file->bytes(*file->find(name));
    std::vector<std::byte> packed(expected.size());
    ASSERT_TRUE(pack_blocks(format.type, values, packed.data())) << name;
    for (std::size_t i = 0; i < packed.size(); ++i) ASSERT_EQ(packed[i], expected[i]) << name << ", byte " << i;
    ++compared;
  }
  EXPECT_EQ(compared, 3u);
}

// Halves away from zero, and the numbers beside them: in a block whose scale is 1.
TEST_P(BlockFormats, Q8IsRoundedAsStdRoundDoes) {
  for (int code = -127; code < 127; ++code) {
    const float half = static_cast<float>(code) + 0.5F;
    std::vector<float> values(32);
    values[0] = 127, values[1] = half, values[2] = std::nextafter(half, -200.0F),
    values[3] = std::nextafter(half, 200.0F);
    values[4] = static_cast<float>(code);
    std::vector<std::byte> packed(34);
    ASSERT_TRUE(pack_blocks(GgmlType::q8_0, values, packed.data()));
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(static_cast<float>(std::to_integer<std::int8_t>(packed[2 + i])), std::round(values[i])) << values[i];
  }
}

// What was packed is worth numbers that are packed the same way again.
TEST_P(BlockFormats, PackingTwiceChangesNothing) {
  const auto file = recorded("packed.gguf");
  for (const GgmlType type : {GgmlType::q8_0, GgmlType::q4_0, GgmlType::mxfp4}) {
    const auto packed = file->bytes(*file->find(info(type).name));
    std::vector<float> values(packed.size() / info(type).block_bytes * static_cast<std::size_t>(info(type).block)),
        again(values.size());
    unpack_blocks(type, packed, values.data());
    std::vector<std::byte> repacked(packed.size());
    ASSERT_TRUE(pack_blocks(type, values, repacked.data()));
    unpack_blocks(type, repacked, again.data());
    for (std::size_t i = 0; i < values.size(); ++i)
      EXPECT_NEAR(again[i], values[i], std::abs(values[i]) * 1e-3F) << info(type).name << ", element " << i;
  }
}

TEST_P(BlockFormats, UnpackToTheNearestCode) {
  const auto file = recorded("packed.gguf");
  const auto values = floats(file->bytes(*file->find("values")));
  std::vector<float> unpacked(values.size());
  unpack_blocks(GgmlType::q8_0, file->bytes(*file->find("Q8_0")), unpacked.data());
  for (std::size_t block = 0; block < values.size(); block += 32) {
    float largest = 0;
    for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(values[block + i]));
    // Half a code, and the rounding of the scale: 2^-11 of it, or half of F16's smallest number, for up to 127 codes.
    const float bound = largest / 127 * 0.5F + largest * 0x1p-11F + 127 * 0x1p-25F;
    for (std::size_t i = 0; i < 32; ++i) EXPECT_NEAR(unpacked[block + i], values[block + i], bound) << block + i;
  }
}

TEST_P(BlockFormats, RefuseAScaleThatDoesNotFit) {
  std::vector<float> values(32, 1);
  std::vector<std::byte> packed(34);
  values[5] = 65504.0F * 127 * 1.01F;
  EXPECT_FALSE(pack_blocks(GgmlType::q8_0, values, packed.data()));
  values[5] = 65504.0F * 127;
  EXPECT_TRUE(pack_blocks(GgmlType::q8_0, values, packed.data()));
  values[5] = -65504.0F * 8 * 1.01F;
  EXPECT_FALSE(pack_blocks(GgmlType::q4_0, values, packed.data()));
}

// Numbers too small for any scale become zeros, and nothing overflows on the way.
TEST_P(BlockFormats, TinyNumbersBecomeZeros) {
  const std::vector<float> values(32, std::numeric_limits<float>::denorm_min() * 200);
  for (const GgmlType type : {GgmlType::q8_0, GgmlType::q4_0}) {
    std::vector<std::byte> packed(info(type).block_bytes);
    ASSERT_TRUE(pack_blocks(type, values, packed.data()));
    std::vector<float> unpacked(32);
    unpack_blocks(type, packed, unpacked.data());
    for (const float value : unpacked) EXPECT_EQ(value, 0.0F) << info(type).name;
  }
}

TEST_P(BlockFormats, EveryRowIsAKnownTypeAndFitsTheLargestBlock) {
  for (const BlockFormat& format : block_formats()) {
    EXPECT_GT(info(format.type).block, 1);
    EXPECT_LE(info(format.type).block, kMaxBlock);
    EXPECT_EQ(info(format.type).dtype, Dtype::unknown);
  }
  EXPECT_EQ(find_block_format(GgmlType::iq2_xxs), nullptr);
  EXPECT_FALSE(can_pack(GgmlType::q4_k));
}

INSTANTIATE_TEST_SUITE_P(Hwy, BlockFormats, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

}  // namespace
}  // namespace peft::gguf
