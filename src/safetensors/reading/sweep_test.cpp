// Every truncation and every changed byte of small valid files: a clean error, or a file that still obeys the format
// and differs from the original only where the changed byte says so.
#include <algorithm>

#include "base/checked.h"
#include "fuzz/check_header.h"
#include "support/test_files.h"

namespace peft::safetensors {
namespace {

struct Seed {
  const char* name;
  std::string bytes;
};

std::string with_padding(std::string json) {
  while ((json.size() + 8) % 8 != 0) json += ' ';
  return json;
}

std::vector<Seed> seeds() {
  const std::string a = entry("layers.0.a", "BF16", "[2,3]", "[0,12]"), b = entry("b\\u00e9", "F32", "[]", "[12,16]");
  return {
      {"two tensors", image(with_padding(R"({"__metadata__":{"format":"pt"},)" + a + "," + b + "}"), 16)},
      {"out of order, unpadded", image("{" + b + "," + a + R"(,"__metadata__":null})", 16)},
      {"empty tensors",
       image(with_padding("{" + entry("z", "I64", "[0,4]", "[0,0]") + "," + entry("f", "F4", "[2]", "[0,1]") + "}"),
             1)},
      {"no tensors", image(R"({"__metadata__":{"a":"\"\\\ud83d\ude00"}}    )")},
  };
}

void expect_obeys_the_format(const TensorFile& file) {
  std::uint64_t covered = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    ASSERT_EQ(tensor.begin, covered);
    covered = tensor.end;
    if (tensor.dtype != Dtype::unknown) {
      ASSERT_EQ(tensor_nbytes(tensor.dtype, tensor.shape), tensor.bytes());
    }
    ASSERT_EQ(file.find(tensor.name), &tensor) << "names are unique";
  }
  ASSERT_EQ(file.data_offset() + covered, file.file_size());
}

// How many properties of tensors and metadata differ, positions aside.
int differences(const TensorFile& a, const TensorFile& b) {
  if (a.tensors().size() != b.tensors().size()) return 1000;
  int count = a.metadata() == b.metadata() ? 0 : 1;
  for (const TensorInfo& tensor : a.tensors()) {
    const TensorInfo* other = b.find(tensor.name);
    if (other == nullptr) {
      ++count;  // renamed
      continue;
    }
    count += tensor.dtype_name != other->dtype_name;
    count += !std::ranges::equal(tensor.shape, other->shape);
    count += tensor.begin != other->begin || tensor.end != other->end;
    count += !std::ranges::equal(a.bytes(tensor), b.bytes(*other));
  }
  return count;
}

// Each bit flipped, and what means something in JSON.
std::string replacements(char byte) {
  std::string all = "\"\\{}[],:0-. \xff";
  for (int bit = 0; bit < 8; ++bit) all += static_cast<char>(byte ^ (1 << bit));
  return all + byte;
}

TEST(Sweep, EveryTruncationIsAnError) {
  for (const Seed& seed : seeds()) {
    for (std::size_t length = 0; length < seed.bytes.size(); ++length) {
      const auto error = error_of([&] { parse(seed.bytes.substr(0, length)); });
      ASSERT_TRUE(error.has_value()) << seed.name << " cut at " << length;
      EXPECT_EQ(info(error->code()).exit_code, 1) << error->what();
    }
  }
}

TEST(Sweep, EveryChangedByteIsNoticedOrHarmless) {
  for (const Seed& seed : seeds()) {
    const auto original = parse(seed.bytes);
    std::string bytes = seed.bytes;
    int accepted = 0;
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      for (const char value : replacements(seed.bytes[at])) {
        bytes[at] = value;
        ASSERT_EQ(naive::check_header(bytes), "") << seed.name << " byte " << at << " = " << static_cast<int>(value);
        std::shared_ptr<const TensorFile> file;
        const auto error = error_of([&] { file = parse(bytes); });
        if (error) {
          ASSERT_EQ(info(error->code()).exit_code, 1) << error->what();
          continue;
        }
        ++accepted;
        ASSERT_NO_FATAL_FAILURE(expect_obeys_the_format(*file))
            << seed.name << " byte " << at << " = " << static_cast<int>(value);
        // A byte of the header is a part of one property; of the data, of one tensor's bytes.
        ASSERT_LE(differences(*original, *file), 1) << seed.name << " byte " << at << " = " << static_cast<int>(value);
      }
      bytes[at] = seed.bytes[at];
    }
    EXPECT_GT(accepted, static_cast<int>(bytes.size())) << seed.name;  // at least the unchanged ones
  }
}

TEST(Sweep, TheSameFromDisk) {
  const TestFolder folder;
  const std::string bytes = seeds()[0].bytes;
  for (std::size_t length = 0; length < bytes.size(); length += 7) {
    const std::string part = bytes.substr(0, length);
    const std::string path = folder.write("x.safetensors", part);
    EXPECT_EQ(error_of([&] { TensorFile::open(path); })->code(), error_of([&] { parse(part); })->code()) << length;
  }
}

}  // namespace
}  // namespace peft::safetensors
