// Heads of new files: byte for byte those of gguf-py, and what is written is read.
#include "gguf/file_layout.h"

#include <algorithm>
#include <random>

#include "fuzz/check_gguf.h"
#include "support/gguf_files.h"
#include "support/golden_root.h"

namespace peft::gguf {
namespace {

namespace fs = std::filesystem;
using safetensors::error_of;
using safetensors::expect_error;
using safetensors::read_text;

int compare_heads(const fs::path& folder) {
  int compared = 0;
  if (!fs::exists(folder)) return compared;
  for (const auto& found : fs::recursive_directory_iterator(folder)) {
    const std::string path = found.path().string();
    if (!path.ends_with(".gguf")) continue;
    const auto file = GgufFile::open(path);
    const FileLayout layout = layout_gguf(described(*file), file->values());
    EXPECT_EQ(file->notes(), std::vector<std::string>{}) << path;
    EXPECT_EQ(layout.head, read_text(path).substr(0, file->data_offset())) << path;
    EXPECT_EQ(layout.file_bytes(), file->file_size()) << path;
    ++compared;
  }
  return compared;
}

TEST(LayoutGguf, HeadsAreThoseOfGgufPy) {
  EXPECT_EQ(compare_heads(fs::path(PEFT_SOURCE_DIR) / "tests" / "gguf"), 4);
  RecordProperty("golden", compare_heads(test::golden_root()));
}

TEST(LayoutGguf, OffsetsPaddingAndAlignment) {
  const std::vector<NewGgufTensor> tensors = {
      {"b", GgmlType::f32, {3}}, {"q", GgmlType::q8_0, {2, 32}}, {"a", GgmlType::bf16, {}}};
  const FileLayout layout = layout_gguf(tensors, {});
  EXPECT_EQ(layout.order, (std::vector<std::size_t>{0, 1, 2}));
  EXPECT_EQ(layout.begin, (std::vector<std::uint64_t>{0, 32, 128}));
  EXPECT_EQ(layout.data_bytes, 160u);
  EXPECT_EQ(layout.head.size() % 32, 0u);
  const FileLayout closer = layout_gguf(tensors, {{"general.alignment", u32_value(8)}});
  EXPECT_EQ(closer.begin, (std::vector<std::uint64_t>{0, 16, 88}));
  EXPECT_EQ(closer.data_bytes, 96u);
  EXPECT_EQ(closer.head.size() % 8, 0u);
  EXPECT_EQ(layout_gguf({}, {}).head, "GGUF" + raw32(3) + std::string(24, '\0'));
}

TEST(LayoutGguf, RefusesWhatCannotBeRead) {
  const auto error = [](std::vector<NewGgufTensor> tensors, const KeyValues& values = {}) {
    return error_of([&] { layout_gguf(tensors, values); });
  };
  using enum ErrorCode;
  expect_error(error({{"w", GgmlType::f32, {1}}, {"w", GgmlType::f32, {1}}}), GG_NAME, {"\"w\"", "two tensors"});
  expect_error(error({{"", GgmlType::f32, {1}}}), GG_NAME, {"empty"});
  expect_error(error({{std::string(64, 'x'), GgmlType::f32, {1}}}), GG_NAME, {"64 bytes", "at most 63"});
  expect_error(error({{"a\xff", GgmlType::f32, {1}}}), GG_NAME, {"a\\x{ff}"});
  expect_error(error({{"w", GgmlType::f32, {1, 1, 1, 1, 1}}}), GG_LIMIT, {"\"w\"", "at most 4"});
  expect_error(error({{"w", GgmlType::f32, {-1}}}), GG_SHAPE, {"\"w\""});
  expect_error(error({{"w", GgmlType::q8_0, {32, 31}}}), GG_SHAPE, {"\"w\"", "multiple of 32", "[32, 31]", "Q8_0"});
  expect_error(error({{"w", GgmlType::f32, {1ll << 61, 1}}}), GG_SHAPE, {"\"w\"", "63 bits"});
  expect_error(error({{"v", GgmlType::i8, {1ll << 62}}, {"w", GgmlType::i8, {1ll << 62}}}), GG_OFFSET, {"\"w\""});
  expect_error(error({}, {{"k", text_value("a")}, {"k", text_value("b")}}), GG_KEY, {"\"k\"", "twice"});
  expect_error(error({}, {{"", text_value("a")}}), GG_KEY, {"empty"});
  expect_error(error({}, {{"k", text_value("\xff")}}), GG_VALUE, {"\"k\"", "UTF-8"});
  expect_error(error({}, {{"general.alignment", u32_value(0)}}), GG_VALUE, {"power of two"});
  expect_error(error({}, {{"general.alignment", u32_value(48)}}), GG_VALUE, {"48"});
  expect_error(error({}, {{"general.alignment", f32_value(32)}}), GG_VALUE, {"type f32", "u32"});
}

// ---- Random files

Value random_value(std::mt19937& random, int depth) {
  static const std::string kTexts[] = {"", "a", "é", "模", "😀", "\n", std::string(300, 'x')};
  switch (random() % (depth < 3 ? 6 : 4)) {
    case 0:
      return u32_value(static_cast<std::uint32_t>(random()));
    case 1:
      return f32_value(static_cast<float>(random() % 1000) / 7);
    case 2:
      return {.type = ValueType::boolean, .bytes = std::string(1, static_cast<char>(random() % 2))};
    case 3:
      return text_value(kTexts[random() % std::size(kTexts)]);
    case 4: {
      std::vector<Value> texts(random() % 4);
      for (Value& text : texts) text = text_value(kTexts[random() % std::size(kTexts)]);
      return array_value(ValueType::text, texts);
    }
    default: {
      std::vector<Value> arrays;
      while (random() % 3 != 0) {
        const Value value = random_value(random, depth + 1);
        if (value.type == ValueType::array) arrays.push_back(value);
      }
      return array_value(ValueType::array, arrays);
    }
  }
}

TEST(LayoutGguf, WhatIsWrittenIsRead) {
  std::mt19937 random(7);
  for (int run = 0; run < 2000; ++run) {
    KeyValues values;
    for (std::size_t i = 0; i < random() % 6; ++i)
      values.emplace_back("k" + std::to_string(i), random_value(random, 0));
    if (random() % 2 == 0) values.emplace_back("general.alignment", u32_value(8u << (random() % 5)));
    std::vector<NewGgufTensor> tensors(random() % 6);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].name = "t" + std::to_string(i);
      tensors[i].type = ggml_types()[random() % ggml_types().size()].type;
      for (std::size_t rank = random() % 4; rank > 0; --rank) tensors[i].shape.push_back(random() % 4 + 1);
      tensors[i].shape.push_back(info(tensors[i].type).block * (random() % 3 + 1));
    }
    const FileLayout layout = layout_gguf(tensors, values);
    std::string bytes = layout.head + std::string(layout.data_bytes, '\0');
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::uint64_t size = *tensor_bytes(tensors[i].type, tensors[i].shape);
      std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(layout.head.size() + layout.begin[i]), size,
                  static_cast<char>(i + 1));
    }
    ASSERT_EQ(check_gguf(bytes), "") << run;
    const auto file = parse_gguf(bytes);
    ASSERT_EQ(file->values(), values) << run;
    ASSERT_EQ(file->notes(), std::vector<std::string>{});
    ASSERT_EQ(file->tensors().size(), tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const TensorInfo* found = file->find(tensors[i].name);
      ASSERT_NE(found, nullptr);
      EXPECT_TRUE(std::ranges::equal(found->shape, tensors[i].shape));
      EXPECT_EQ(file->type_of(*found), tensors[i].type);
      EXPECT_TRUE(std::ranges::all_of(file->bytes(*found), [&](std::byte b) { return b == std::byte(i + 1); }));
    }
  }
}

}  // namespace
}  // namespace peft::gguf
