// Every truncation and every changed byte of small valid files: a clean error, or a file that still obeys the format.
#include <algorithm>

#include "fuzz/check_gguf.h"
#include "support/gguf_files.h"

namespace peft::gguf {
namespace {

using safetensors::error_of;

struct Seed {
  const char* name;
  std::string bytes;
};

std::vector<Seed> seeds() {
  const std::string alpha = raw_key("adapter.lora.alpha", 6, raw32(0x41800000)),
                    texts = raw_key("t", 9, raw_array(8, 2, raw_text("a") + raw_text(""))),
                    nested = raw_key("n", 9, raw_array(9, 2, raw_array(7, 1, "\1") + raw_array(4, 1, raw32(7)))),
                    alignment = raw_key("general.alignment", 4, raw32(8));
  return {
      {"an adapter", gguf_image({raw_key("general.type", 8, raw_text("adapter")), alpha},
                                {{"blk.0.a", {2, 3}, 0, 0}, {"blk.0.b", {32, 1}, 8, 32}}, 96)},
      {"every kind of value, alignment 8", gguf_image({alignment, texts, nested, raw_key("b", 7, std::string(1, '\0'))},
                                                      {{"x", {3}, 30, 0}, {"y", {}, 27, 8}}, 16, 3, 8)},
      {"version 2, an empty tensor", gguf_image({alpha}, {{"e", {0, 4}, 0, 0}, {"f", {1, 1, 1, 2}, 1, 0}}, 32, 2)},
      {"no tensors", gguf_image({alpha}, {}, 0)},
  };
}

// Each bit flipped, and what means something: types, counts, the smallest and the largest byte.
std::string replacements(char byte) {
  std::string all("\0\1\2\3\7\x08\x09\x0c\x1e\xff", 10);
  for (int bit = 0; bit < 8; ++bit) all += static_cast<char>(byte ^ (1 << bit));
  return all + byte;
}

TEST(GgufSweep, EveryTruncationIsAnErrorUnlessOnlyPaddingIsLost) {
  for (const Seed& seed : seeds()) {
    const auto whole = parse_gguf(seed.bytes);
    const std::uint64_t end = whole->tensors().empty() ? 0 : whole->tensors().back().end;
    for (std::size_t length = 0; length < seed.bytes.size(); ++length) {
      const std::string part = seed.bytes.substr(0, length);
      ASSERT_EQ(check_gguf(part), "") << seed.name << " cut at " << length;
      const auto error = error_of([&] { parse_gguf(part); });
      if (whole->tensors().empty() || length >= whole->data_offset() + end) continue;  // padding
      ASSERT_TRUE(error.has_value()) << seed.name << " cut at " << length;
    }
  }
}

TEST(GgufSweep, EveryChangedByteIsNoticedOrHarmless) {
  for (const Seed& seed : seeds()) {
    std::string bytes = seed.bytes;
    int accepted = 0;
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      for (const char value : replacements(seed.bytes[at])) {
        bytes[at] = value;
        ASSERT_EQ(check_gguf(bytes), "") << seed.name << " byte " << at << " = " << static_cast<int>(value);
        if (!error_of([&] { parse_gguf(bytes); })) ++accepted;
      }
      bytes[at] = seed.bytes[at];
    }
    EXPECT_GT(accepted, static_cast<int>(bytes.size())) << seed.name;  // at least the unchanged ones
  }
}

// All eight bytes of every count, length, dimension and offset become very large.
TEST(GgufSweep, LargeNumbersAnywhereAreRefusedAtOnce) {
  const std::uint64_t kLarge[] = {~0ull, 1ull << 63, (1ull << 63) - 1, 1ull << 62, 1ull << 40, 1ull << 32};
  for (const Seed& seed : seeds()) {
    for (std::size_t at = 0; at + 8 <= seed.bytes.size(); ++at) {
      for (const std::uint64_t number : kLarge) {
        std::string bytes = seed.bytes;
        bytes.replace(at, 8, raw64(number));
        ASSERT_EQ(check_gguf(bytes), "") << seed.name << " byte " << at << " = " << number;
      }
    }
  }
}

TEST(GgufSweep, TheSameFromDisk) {
  const safetensors::TestFolder folder;
  const std::string bytes = seeds()[0].bytes;
  for (std::size_t length = 0; length < bytes.size() - 32; length += 7) {
    const std::string part = bytes.substr(0, length);
    const std::string path = folder.write("x.gguf", part);
    EXPECT_EQ(error_of([&] { GgufFile::open(path); })->code(), error_of([&] { parse_gguf(part); })->code()) << length;
  }
}

}  // namespace
}  // namespace peft::gguf
