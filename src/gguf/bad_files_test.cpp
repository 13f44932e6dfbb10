// Files that must be refused: one row each, with the code and what its message must say.
#include <chrono>

#include "gguf/header.h"
#include "support/gguf_files.h"

namespace peft::gguf {
namespace {

using safetensors::error_of;
using safetensors::expect_error;
using safetensors::TestFolder;

struct BadFile {
  const char* what;
  std::function<std::string()> build;
  ErrorCode code;
  std::vector<std::string> parts;
};

using enum ErrorCode;

// The head of a file with these counts, and what follows.
std::string counts(std::uint64_t tensors, std::uint64_t keys, const std::string& rest = {}) {
  return "GGUF" + raw32(3) + raw64(tensors) + raw64(keys) + rest;
}
std::string with_key(const std::string& key) { return gguf_image({key}, {}, 0); }
std::string with_tensor(const RawTensor& tensor, std::size_t data = 32) { return gguf_image({}, {tensor}, data); }

std::string nested(std::size_t depth) {
  std::string bytes = raw_array(4, 0, "");
  for (std::size_t i = 1; i < depth; ++i) bytes = raw_array(9, 1, bytes);
  return with_key(raw_key("deep", 9, bytes));
}

std::vector<BadFile> bad_starts() {
  return {
      {"empty", [] { return std::string(); }, GG_MAGIC, {"not a GGUF file", "no bytes"}},
      {"three bytes", [] { return std::string("GGU"); }, GG_MAGIC, {"bytes 47 47 55"}},
      {"other bytes", [] { return std::string("hello, world"); }, GG_MAGIC, {"bytes 68 65 6c 6c 6f 2c 20 77"}},
      {"safetensors", [] { return safetensors::image("{}"); }, GG_MAGIC, {"a safetensors file"}},
      {"Git LFS pointer",
       [] { return std::string("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"); },
       GG_MAGIC,
       {"Git LFS pointer", "git lfs pull"}},
      {"old LoRA file", [] { return "algg" + raw32(1); }, GG_MAGIC, {"GGLA", "convert the adapter again"}},
      {"old model file", [] { return "tjgg" + raw32(3); }, GG_MAGIC, {"GGJT"}},
      {"gzip", [] { return std::string("\x1f\x8b\x08\0\0\0", 6); }, GG_MAGIC, {"gzip", "unpack"}},
      {"cut in the version", [] { return std::string("GGUF\x03"); }, GG_HEADER, {"the version", "4 bytes", "got 1"}},
      {"version 1", [] { return "GGUF" + raw32(1) + raw32(0) + raw32(0); }, GG_VERSION, {"version 1", "2 or 3"}},
      {"version 0", [] { return "GGUF" + raw32(0); }, GG_VERSION, {"version 0"}},
      {"version 4", [] { return "GGUF" + raw32(4); }, GG_VERSION, {"version 4", "newer"}},
      {"big-endian", [] { return "GGUF" + raw32(0x03000000); }, GG_VERSION, {"version 3, big-endian"}},
      {"cut in the counts", [] { return "GGUF" + raw32(3) + raw64(0); }, GG_HEADER, {"the number of keys"}},
      {"2^64-1 tensors", [] { return counts(~0ull, 0); }, GG_HEADER, {"18446744073709551615", "tensors", "at most 0"}},
      {"2^64-1 keys", [] { return counts(0, ~0ull); }, GG_HEADER, {"18446744073709551615", "keys"}},
      {"too many keys",
       [] { return counts(0, 100'001, std::string(1'500'000, '\0')); },
       GG_LIMIT,
       {"100001", "100000"}},
      {"too many tensors",
       [] { return counts(1'000'001, 0, std::string(26'000'000, '\0')); },
       GG_LIMIT,
       {"1000001", "--max-tensors"}},
  };
}

std::vector<BadFile> bad_keys() {
  const std::string value = raw32(7);
  return {
      {"empty key", [=] { return with_key(raw_key("", 4, value)); }, GG_KEY, {"key is empty"}},
      {"key of 2^63 bytes",
       [=] { return counts(0, 1, raw64(1ull << 63) + value + value); },
       GG_HEADER,
       {"the next key"}},
      {"long key", [=] { return with_key(raw_key(std::string(65536, 'k'), 4, value)); }, GG_KEY, {"at most 65535"}},
      {"key not UTF-8", [=] { return with_key(raw_key("k\xff", 4, value)); }, GG_KEY, {"k\\x{ff}", "UTF-8"}},
      {"key with a zero byte",
       [=] { return with_key(raw_key(std::string("k\0l", 3), 4, value)); },
       GG_KEY,
       {"k\\u{0}l", "zero byte"}},
      {"key twice",
       [=] {
         return gguf_image({raw_key("k", 4, value), raw_key("l", 4, value), raw_key("k", 4, value)}, {}, 0);
       },
       GG_KEY,
       {"\"k\"", "twice"}},
      {"escape in a key", [=] { return with_key(raw_key("\x1b[2J", 99, value)); }, GG_VALUE, {"\\u{1b}[2J"}},
  };
}

std::vector<BadFile> bad_values() {
  const auto key = [](std::uint32_t type, const std::string& bytes) { return with_key(raw_key("k", type, bytes)); };
  return {
      {"unknown type", [=] { return key(13, raw64(0)); }, GG_VALUE, {"\"k\"", "got 13", "0 to 12"}},
      {"cut in a number", [] { return counts(0, 1, raw_key("key", 12, raw32(0))); }, GG_HEADER, {"\"key\"", "8 bytes"}},
      {"bool of 2", [=] { return key(7, "\2"); }, GG_VALUE, {"\"k\"", "got 2", "0 or 1"}},
      {"bool of 255 in an array", [=] { return key(9, raw_array(7, 3, "\1\1\xff")); }, GG_VALUE, {"got 255"}},
      {"text not UTF-8", [=] { return key(8, raw_text("\xc0\xaf")); }, GG_VALUE, {"\"k\"", "UTF-8"}},
      {"text longer than the file", [=] { return key(8, raw64(1000)); }, GG_HEADER, {"got 1000 bytes"}},
      {"text of 2^64-1 bytes", [=] { return key(8, raw64(~0ull)); }, GG_HEADER, {"18446744073709551615"}},
      {"text above the limit",
       [=] { return key(8, raw_text(std::string(kMaxText + 1, 'x'))); },
       GG_LIMIT,
       {"\"k\"", "16777217"}},
      {"array of an unknown type",
       [=] { return key(9, raw_array(13, 1, raw64(0))); },
       GG_VALUE,
       {"elements", "got 13"}},
      {"array longer than the file", [=] { return key(9, raw_array(4, 100, raw64(0))); }, GG_HEADER, {"100 elements"}},
      {"array whose size overflows", [=] { return key(9, raw_array(12, 1ull << 61, "")); }, GG_HEADER, {"\"k\""}},
      {"array of texts longer than the file",
       [=] { return key(9, raw_array(8, 9, raw_text("a"))); },
       GG_HEADER,
       {"9 el"}},
      {"text of an array longer than the file",
       [=] { return key(9, raw_array(8, 1, raw64(1ull << 40) + raw64(0))); },
       GG_HEADER,
       {"1099511627776 bytes"}},
      {"arrays nested 9 deep", [] { return nested(9); }, GG_LIMIT, {"\"deep\"", "at most 8 levels"}},
      {"arrays nested 5000 deep", [] { return nested(5000); }, GG_LIMIT, {"at most 8 levels"}},
  };
}

std::vector<BadFile> bad_alignments() {
  const auto alignment = [](std::uint32_t type, const std::string& bytes) {
    return with_key(raw_key("general.alignment", type, bytes));
  };
  return {
      {"alignment of 64 bits", [=] { return alignment(10, raw64(32)); }, GG_VALUE, {"type u64", "u32"}},
      {"alignment as a text", [=] { return alignment(8, raw_text("32")); }, GG_VALUE, {"type text"}},
      {"alignment 0", [=] { return alignment(4, raw32(0)); }, GG_VALUE, {"power of two", "got 0"}},
      {"alignment 4", [=] { return alignment(4, raw32(4)); }, GG_VALUE, {"from 8", "got 4"}},
      {"alignment 33", [=] { return alignment(4, raw32(33)); }, GG_VALUE, {"got 33"}},
      {"alignment 2^31", [=] { return alignment(4, raw32(1u << 31)); }, GG_VALUE, {"65536", "2147483648"}},
  };
}

std::vector<BadFile> bad_tensors() {
  return {
      {"empty name",
       [] {
         return with_tensor({"", {8}});
       },
       GG_NAME,
       {"name is empty"}},
      {"long name",
       [] {
         return with_tensor({std::string(64, 'n'), {8}});
       },
       GG_NAME,
       {"at most 63", "got 64"}},
      {"name not UTF-8",
       [] {
         return with_tensor({"a\xff", {8}});
       },
       GG_NAME,
       {"a\\x{ff}", "UTF-8"}},
      {"name with a zero byte",
       [] {
         return with_tensor({std::string("a\0", 2), {8}});
       },
       GG_NAME,
       {"a\\u{0}"}},
      {"name twice",
       [] {
         return gguf_image({}, {{"w", {8}, 0, 0}, {"v", {8}, 0, 32}, {"w", {8}, 0, 64}}, 96);
       },
       GG_NAME,
       {"\"w\"", "two tensors"}},
      {"5 dimensions",
       [] {
         return with_tensor({"w", {8, 1, 1, 1, 1}});
       },
       GG_LIMIT,
       {"\"w\"", "at most 4", "got 5"}},
      {"2^32-1 dimensions",
       [] { return counts(1, 0, raw_text("w") + raw32(~0u) + std::string(64, '\0')); },
       GG_LIMIT,
       {"4294967295"}},
      {"negative dimension",
       [] {
         return with_tensor({"w", {~0ull}});
       },
       GG_SHAPE,
       {"\"w\"", "18446744073709551615"}},
      {"product overflows",
       [] {
         return with_tensor({"w", {1ull << 32, 1ull << 32}});
       },
       GG_SHAPE,
       {"63 bits"}},
      {"product overflows before a zero",
       [] {
         return with_tensor({"w", {1ull << 32, 1ull << 32, 0}});
       },
       GG_SHAPE,
       {"63 bits"}},
      {"size overflows",
       [] {
         return with_tensor({"w", {1ull << 61, 1}});
       },
       GG_SHAPE,
       {"63 bits", "F32"}},
      {"unknown type",
       [] {
         return with_tensor({"w", {8}, 99});
       },
       GG_TYPE,
       {"\"w\"", "type 99", "newer"}},
      {"type 2^32-1",
       [] {
         return with_tensor({"w", {8}, ~0u});
       },
       GG_TYPE,
       {"type 4294967295"}},
      {"removed type",
       [] {
         return with_tensor({"w", {8}, 31});
       },
       GG_TYPE,
       {"type 31", "removed"}},
      {"half a block",
       [] {
         return with_tensor({"w", {16, 2}, 8});
       },
       GG_SHAPE,
       {"[2, 16]", "Q8_0", "multiple of 32"}},
      {"quantised scalar",
       [] {
         return with_tensor({"w", {}, 8});
       },
       GG_SHAPE,
       {"Q8_0", "[]"}},
  };
}

std::vector<BadFile> bad_data() {
  return {
      {"not aligned",
       [] {
         return with_tensor({"w", {8}, 0, 16}, 64);
       },
       GG_OFFSET,
       {"\"w\"", "multiple of 32"}},
      {"a gap before the first",
       [] {
         return with_tensor({"w", {8}, 0, 32}, 64);
       },
       GG_OFFSET,
       {"32 bytes before"}},
      {"a gap between two",
       [] {
         return gguf_image({}, {{"v", {8}, 0, 0}, {"w", {8}, 0, 96}}, 128);
       },
       GG_OFFSET,
       {"\"w\"", "64 bytes before", "from byte 32"}},
      {"the same bytes twice",
       [] {
         return gguf_image({}, {{"v", {8}, 0, 0}, {"w", {8}, 0, 0}}, 32);
       },
       GG_OFFSET,
       {"\"w\"", "\"v\"", "[0, 32)"}},
      {"overlapping",
       [] {
         return gguf_image({}, {{"v", {16}, 0, 0}, {"w", {8}, 0, 32}}, 64);
       },
       GG_OFFSET,
       {"\"w\"", "shares bytes with \"v\"", "from byte 64"}},
      {"an end beyond 2^63",
       [] {
         return with_tensor({"w", {8}, 0, ~31ull});
       },
       GG_OFFSET,
       {"\"w\"", "2^63"}},
      {"an end near 2^63",
       [] {
         return with_tensor({"w", {1ull << 60}, 0, 0});
       },
       GG_TRUNC,
       {"\"w\"", "got 96 bytes"}},
      {"data short by one byte",
       [] {
         return with_tensor({"w", {8}}, 31);
       },
       GG_TRUNC,
       {"96 bytes in all", "download"}},
      {"no data",
       [] {
         return gguf_image({}, {{"v", {8}, 0, 0}, {"w", {8}, 0, 32}}, 0);
       },
       GG_TRUNC,
       {"\"v\""}},
      {"trailing bytes",
       [] {
         return with_tensor({"w", {8}}, 35);
       },
       GG_TRAIL,
       {"3 bytes follow", "--allow-trailing"}},
      {"bytes after no tensor", [] { return gguf_image({}, {}, 1); }, GG_TRAIL, {"1 bytes follow"}},
      {"padding that is not zero",
       [] {
         std::string bytes = with_tensor({"w", {8}});
         bytes[63] = 'x';
         return bytes;
       },
       GG_TRAIL,
       {"padding", "not zero"}},
      {"header padding is cut",
       [] {
         return with_tensor({"w", {0}}, 0).substr(0, 60);
       },
       GG_HEADER,
       {"the padding after the header"}},
  };
}

class BadGgufFiles : public testing::TestWithParam<BadFile> {};

TEST_P(BadGgufFiles, AreRefusedWithTheirReason) {
  const BadFile& bad = GetParam();
  const std::string bytes = bad.build();
  const auto start = std::chrono::steady_clock::now();
  const auto in_memory = error_of([&] { parse_gguf(bytes); });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  auto parts = bad.parts;
  parts.emplace_back("test.gguf");
  expect_error(in_memory, bad.code, parts);

  const TestFolder folder;
  const std::string path = folder.write("test.gguf", bytes);
  const auto on_disk = error_of([&] { GgufFile::open(path); });
  ASSERT_TRUE(on_disk.has_value());
  EXPECT_EQ(on_disk->detail().problem, in_memory->detail().problem);
  EXPECT_EQ(on_disk->detail().file, path);
}

std::string row_name(const testing::TestParamInfo<BadFile>& tested) {
  std::string name;
  for (const char* c = tested.param.what; *c != 0; ++c)
    name += std::isalnum(static_cast<unsigned char>(*c)) != 0 ? *c : '_';
  return name + "_" + std::to_string(tested.index);
}

INSTANTIATE_TEST_SUITE_P(Starts, BadGgufFiles, testing::ValuesIn(bad_starts()), row_name);
INSTANTIATE_TEST_SUITE_P(Keys, BadGgufFiles, testing::ValuesIn(bad_keys()), row_name);
INSTANTIATE_TEST_SUITE_P(Values, BadGgufFiles, testing::ValuesIn(bad_values()), row_name);
INSTANTIATE_TEST_SUITE_P(Alignments, BadGgufFiles, testing::ValuesIn(bad_alignments()), row_name);
INSTANTIATE_TEST_SUITE_P(Tensors, BadGgufFiles, testing::ValuesIn(bad_tensors()), row_name);
INSTANTIATE_TEST_SUITE_P(Data, BadGgufFiles, testing::ValuesIn(bad_data()), row_name);

TEST(BadGgufFile, AHundredThousandAliasesAreRefusedQuickly) {
  std::vector<RawTensor> tensors;
  for (int i = 0; i < 100'000; ++i) tensors.push_back({"t" + std::to_string(i), {8}, 0, 0});
  const std::string bytes = gguf_image({}, tensors, 32);
  const auto start = std::chrono::steady_clock::now();
  expect_error(error_of([&] { parse_gguf(bytes); }), GG_OFFSET, {"\"t1\"", "\"t0\""});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

// The file has room for such an array, but it is no header. The file is sparse: nothing of it is read.
TEST(BadGgufFile, AHeaderAsLargeAsTheFileIsRefusedBeforeItIsRead) {
  const TestFolder folder;
  const std::string path = folder.write("large.gguf", counts(0, 1, raw_key("k", 9, raw_array(12, 1'000'000'000, ""))));
  std::filesystem::resize_file(path, 10'000'000'000);
  const auto start = std::chrono::steady_clock::now();
  expect_error(error_of([&] { GgufFile::open(path); }), GG_LIMIT, {"\"k\"", "at most 100000000 bytes"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

}  // namespace
}  // namespace peft::gguf
