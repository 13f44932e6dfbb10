// Heads of new files: byte for byte those of the safetensors library, and properties of writing and reading.
#include <rapidcheck.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "base/checked.h"
#include "support/golden_root.h"
#include "support/test_files.h"

namespace peft {

// For rapidcheck's counterexamples.
void showValue(const NewTensor& tensor, std::ostream& out) {
  out << printable(tensor.name) << ' ' << info(tensor.dtype).name << " rank " << tensor.shape.size();
}

namespace safetensors {
namespace {

namespace fs = std::filesystem;

using test::golden_root;

std::vector<NewTensor> described(const TensorFile& file) {
  std::vector<NewTensor> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    tensors.push_back({std::string(tensor.name), tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}});
  }
  return tensors;
}

// Left out: several metadata keys, which the library writes in random order, and files of other writers, whose JSON
// has spaces.
TEST(LayoutFile, HeadsAreThoseOfTheSafetensorsLibrary) {
  int compared = 0;
  for (const auto& found : fs::recursive_directory_iterator(golden_root())) {
    const std::string path = found.path().string();
    if (!path.ends_with(".safetensors")) continue;
    const auto file = TensorFile::open(path);
    const std::string head = read_text(path).substr(0, file->data_offset());
    if (file->metadata().size() > 1 || !file->notes().empty() || head.find("\": ") != std::string::npos) continue;
    std::vector<NewTensor> tensors = described(*file);
    std::reverse(tensors.begin(), tensors.end());  // the order of the input must not matter
    const FileLayout layout = layout_file(tensors, file->metadata());
    ASSERT_EQ(layout.head, head) << path;
    ASSERT_EQ(layout.file_bytes(), file->file_size());
    ++compared;
  }
  EXPECT_GT(compared, 20) << golden_root();
  RecordProperty("compared", compared);
}

TEST(LayoutFile, OrderOffsetsAndPadding) {
  const std::vector<NewTensor> tensors = {
      {"b", Dtype::u8, {3}}, {"z", Dtype::f32, {2}}, {"a", Dtype::u8, {}}, {"i", Dtype::i64, {1}}};
  const FileLayout layout = layout_file(tensors, {});
  EXPECT_EQ(layout.order, (std::vector<std::size_t>{3, 1, 2, 0}));
  EXPECT_EQ(layout.begin, (std::vector<std::uint64_t>{17, 8, 16, 0}));
  EXPECT_EQ(layout.data_bytes, 20u);
  EXPECT_EQ(layout.head.size() % 8, 0u);
  EXPECT_EQ(layout.head.substr(8), "{" + entry("i", "I64", "[1]", "[0,8]") + "," + entry("z", "F32", "[2]", "[8,16]") +
                                       "," + entry("a", "U8", "[]", "[16,17]") + "," +
                                       entry("b", "U8", "[3]", "[17,20]") + "}" +
                                       std::string(layout.head.size() - 8 - layout.head.find_last_of('}') + 7, ' '));
}

TEST(LayoutFile, NothingAndOnlyMetadata) {
  EXPECT_EQ(layout_file({}, {}).head, length_bytes(8) + "{}      ");
  EXPECT_EQ(layout_file({}, {{"a", "b\n\x01\"\\"}}).head.substr(8, 38), R"({"__metadata__":{"a":"b\n\u0001\"\\"}})");
}

TEST(LayoutFile, RefusesWhatCannotBeRead) {
  const auto error = [](std::vector<NewTensor> tensors, const Metadata& metadata = {}) {
    return error_of([&] { layout_file(tensors, metadata); });
  };
  expect_error(error({{"w", Dtype::u8, {1}}, {"x", Dtype::u8, {1}}, {"w", Dtype::f32, {1}}}), ErrorCode::ST_DUP,
               {"\"w\""});
  expect_error(error({{"", Dtype::u8, {1}}}), ErrorCode::ST_NAME, {"empty"});
  expect_error(error({{std::string(5000, 'x'), Dtype::u8, {1}}}), ErrorCode::ST_NAME, {"5000"});
  expect_error(error({{"__metadata__", Dtype::u8, {1}}}), ErrorCode::ST_NAME, {"__metadata__"});
  expect_error(error({{"a\xff", Dtype::u8, {1}}}), ErrorCode::ST_UTF8, {"a\\x{ff}"});
  expect_error(error({}, {{"k", "\xff"}}), ErrorCode::ST_UTF8, {"k"});
  expect_error(error({{"w", Dtype::unknown, {1}}}), ErrorCode::ST_DTYPE, {"\"w\""});
  expect_error(error({{"w", Dtype::u8, {-1}}}), ErrorCode::ST_SHAPE, {"\"w\"", "-1"});
  expect_error(error({{"w", Dtype::f64, {INT64_MAX, 2}}}), ErrorCode::ST_OVERFLOW, {"\"w\""});
  expect_error(error({{"w", Dtype::u8, {1ll << 60}}, {"v", Dtype::u8, {1ll << 60}}, {"u", Dtype::f4, {3}}}),
               ErrorCode::ST_BITS, {"\"u\""});
  expect_error(error({{"w", Dtype::u8, std::vector<std::int64_t>(17, 1)}}), ErrorCode::ST_LIMIT, {"\"w\"", "17"});
}

// ---- properties ------------------------------------------------------------------------------------------------

// Names of all sorts: plain, with what JSON escapes, with what is not ASCII.
rc::Gen<std::string> names() {
  return rc::gen::map(rc::gen::resize(12, rc::gen::container<std::vector<std::string>>(rc::gen::element<std::string>(
                                              "a", "b", ".", "layers", "0", "10", "\"", "\\", "\n",
                                              std::string(1, '\0'), "\x1f", "\x7f", "/", "é", "模", "😀", " "))),
                      [](const std::vector<std::string>& parts) {
                        return std::accumulate(parts.begin(), parts.end(), std::string("t"));
                      });
}

rc::Gen<std::vector<NewTensor>> tensor_sets() {
  const auto tensor = rc::gen::map(
      rc::gen::tuple(
          names(), rc::gen::inRange<std::size_t>(0, dtypes().size()),
          rc::gen::resize(4, rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(0, 5)))),
      [](const auto& parts) {
        const DtypeInfo& row = dtypes()[std::get<1>(parts)];
        NewTensor made{std::get<0>(parts), row.dtype, std::get<2>(parts)};
        if (row.bits < 8) made.shape.push_back(4);  // whole bytes
        return made;
      });
  return rc::gen::resize(10,
                         rc::gen::uniqueBy<std::vector<NewTensor>>(tensor, [](const NewTensor& t) { return t.name; }));
}

rc::Gen<Metadata> metadata_sets() { return rc::gen::resize(4, rc::gen::container<Metadata>(names(), names())); }

std::string written(const std::vector<NewTensor>& tensors, const Metadata& metadata) {
  const FileLayout layout = layout_file(tensors, metadata);
  std::string bytes = layout.head + std::string(layout.data_bytes, '\0');
  for (std::size_t i = 0; i < tensors.size(); ++i) {  // each tensor is filled with a byte of its own
    const std::uint64_t size = *tensor_nbytes(tensors[i].dtype, tensors[i].shape);
    const char mark = static_cast<char>(std::hash<std::string>{}(tensors[i].name));
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(layout.head.size() + layout.begin[i]), size, mark);
  }
  return bytes;
}

void check(const std::function<void()>& property) { EXPECT_TRUE(rc::check(property)); }

TEST(Properties, WhatIsWrittenIsRead) {
  check([] {
    const auto tensors = *tensor_sets();
    const auto metadata = *metadata_sets();
    const std::string bytes = written(tensors, metadata);
    const auto file = parse(bytes);
    RC_ASSERT(file->notes().empty());
    RC_ASSERT(file->metadata() == metadata);
    RC_ASSERT(file->tensors().size() == tensors.size());
    for (const NewTensor& tensor : tensors) {
      const TensorInfo* found = file->find(tensor.name);
      RC_ASSERT(found != nullptr);
      RC_ASSERT(found->dtype == tensor.dtype);
      RC_ASSERT(std::ranges::equal(found->shape, tensor.shape));
      const auto mark = static_cast<std::byte>(std::hash<std::string>{}(tensor.name));
      RC_ASSERT(std::ranges::all_of(file->bytes(*found), [&](std::byte b) { return b == mark; }));
    }
  });
}

TEST(Properties, TheOrderOfTheInputDoesNotMatter) {
  check([] {
    auto tensors = *tensor_sets();
    const auto metadata = *metadata_sets();
    const std::string bytes = written(tensors, metadata);
    std::shuffle(tensors.begin(), tensors.end(), std::mt19937(*rc::gen::arbitrary<std::uint32_t>()));
    RC_ASSERT(written(tensors, metadata) == bytes);
  });
}

TEST(Properties, WritingWhatWasReadIsAFixedPoint) {
  check([] {
    const std::string bytes = written(*tensor_sets(), *metadata_sets());
    const auto file = parse(bytes);
    RC_ASSERT(written(described(*file), file->metadata()) == bytes);
  });
}

TEST(Properties, TensorsAreAlignedToTheirElements) {
  check([] {
    const auto tensors = *tensor_sets();
    const FileLayout layout = layout_file(tensors, {});
    RC_ASSERT(layout.head.size() % 8 == 0u);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const auto bytes = static_cast<std::uint64_t>(std::max(8, info(tensors[i].dtype).bits) / 8);
      RC_ASSERT(layout.begin[i] % bytes == 0u);
    }
  });
}

}  // namespace
}  // namespace safetensors
}  // namespace peft
