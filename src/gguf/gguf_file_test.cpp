// Files that are read: what gguf-py says about them, odd ones, and files that change while they are read.
#include "gguf/gguf_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "support/gguf_files.h"
#include "support/golden_root.h"

namespace peft::gguf {
namespace {

namespace fs = std::filesystem;
using safetensors::error_of;
using safetensors::expect_error;
using safetensors::read_text;
using safetensors::TestFolder;
using Json = nlohmann::json;

const fs::path kFolder = fs::path(PEFT_SOURCE_DIR) / "tests" / "gguf";

// ---- gguf-py's listings (tests/gguf/gguf_py.py)

Json as_json(const Value& value) {
  if (const auto text = as_text(value)) return *text;
  if (value.type == ValueType::boolean) return value.bytes[0] != 0;
  if (value.type == ValueType::f32 || value.type == ValueType::f64) return *as_number(value);
  if (const auto number = as_unsigned(value)) return *number;
  if (value.type != ValueType::array) return static_cast<std::int64_t>(*as_number(value));
  Json list = Json::array();
  for (const Value& element : elements(value)) list.push_back(as_json(element));
  return list;
}

Json types_of(const Value& value) {
  Json types = {info(value.type).name};
  if (value.type != ValueType::array) return types;
  types.push_back(info(value.element).name);
  if (value.element == ValueType::array) types.push_back(info(elements(value).front().element).name);
  return types;
}

Json listing(const GgufFile& file) {
  Json values = Json::array(), tensors = Json::array();
  for (const auto& [key, value] : file.values()) values.push_back({key, types_of(value), as_json(value)});
  for (const TensorInfo& tensor : file.tensors()) {
    const std::vector<std::int64_t> shape(tensor.shape.begin(), tensor.shape.end());
    tensors.push_back({tensor.name, tensor.dtype_name, shape, tensor.begin, tensor.bytes()});
  }
  return {{"version", file.version()},
          {"alignment", file.alignment()},
          {"data_offset", file.data_offset()},
          {"values", values},
          {"tensors", tensors}};
}

int compare_listings(const fs::path& path) {
  const Json expected = Json::parse(read_text(path.string()));
  for (const auto& [name, list] : expected.items()) {
    const Json found = listing(*GgufFile::open((path.parent_path() / name).string()));
    EXPECT_EQ(found, list) << name << " " << Json::diff(list, found).dump(1);
  }
  return static_cast<int>(expected.size());
}

TEST(GgufFile, UnpacksWhatIsQuantised) {
  const auto file = GgufFile::open((kFolder / "blocks.gguf").string()), plain = file->unpacked();
  ASSERT_NE(plain, nullptr);
  for (const TensorInfo& tensor : file->tensors()) {
    const TensorInfo& now = *plain->find(tensor.name);
    EXPECT_EQ(now.dtype, Dtype::f32) << tensor.name;
    const std::string values = std::string(tensor.name) + (tensor.dtype == Dtype::unknown ? ".values" : "");
    EXPECT_TRUE(std::ranges::equal(plain->bytes(now), file->bytes(*file->find(values)))) << tensor.name;
    EXPECT_EQ(now.bytes(), plain->bytes(now).size()) << tensor.name;
  }
  EXPECT_EQ(GgufFile::open((kFolder / "lora.gguf").string())->unpacked(), nullptr);
}

TEST(GgufFile, ListingsAreThoseOfGgufPy) { EXPECT_EQ(compare_listings(kFolder / "listing.json"), 4); }

TEST(GgufFile, ListingsOfOtherFiles) {
  const char* path = std::getenv("PEFT_GGUF_LISTING");
  if (path == nullptr) GTEST_SKIP() << "$PEFT_GGUF_LISTING is what `gguf_py.py list FILE...` printed";
  EXPECT_GT(compare_listings(path), 0);
}

TEST(GgufFile, EveryTypeOfTheTableButOneIsInTheFile) {
  const auto file = GgufFile::open((kFolder / "every_type.gguf").string());
  for (const GgmlTypeInfo& row : ggml_types()) {
    if (row.type == GgmlType::q8_1 || row.type == GgmlType::q2_0) continue;  // gguf-py 0.19.0 does not write them
    const TensorInfo* tensor = file->find("a." + std::string(row.name));
    ASSERT_NE(tensor, nullptr) << row.name;
    EXPECT_EQ(tensor->bytes(), 6 * row.block_bytes);
    EXPECT_EQ(tensor->dtype, row.dtype);
    for (std::uint64_t i = 0; i < tensor->bytes(); ++i) ASSERT_EQ(file->bytes(*tensor)[i], static_cast<std::byte>(i));
  }
}

TEST(GgufFile, EveryGoldenFileIsAnAdapterOrItsBase) {
  int adapters = 0;
  const fs::path folder = test::golden_root() / "consumers" / "llama_cpp";
  if (!fs::exists(folder)) GTEST_SKIP() << "no " << folder;
  for (const auto& found : fs::recursive_directory_iterator(folder)) {
    if (found.path().extension() != ".gguf") continue;
    const auto file = GgufFile::open(found.path().string());
    const Value* type = find_value(file->values(), "general.type");
    ASSERT_NE(type, nullptr);
    if (found.path().filename() == "base.gguf") {
      EXPECT_EQ(as_text(*type), "model");
      continue;
    }
    ++adapters;
    EXPECT_EQ(as_text(*type), "adapter");
    EXPECT_EQ(as_number(*find_value(file->values(), "adapter.lora.alpha")), 5.0);
    EXPECT_EQ(file->tensors().size() % 2, 0u);
  }
  EXPECT_GT(adapters, 0);
}

// ---- The table and values

TEST(GgmlType, NumbersAndNamesAreUnique) {
  for (const GgmlTypeInfo& row : ggml_types()) {
    EXPECT_EQ(find_ggml_type(static_cast<std::uint32_t>(row.type)), &row);
    EXPECT_EQ(parse_ggml_type(row.name), row.type);
    if (row.dtype == Dtype::unknown) continue;
    EXPECT_EQ(ggml_type_of(row.dtype), row.type);
    EXPECT_EQ(static_cast<std::uint64_t>(peft::info(row.dtype).bits) / 8, row.block_bytes);
  }
  EXPECT_EQ(find_ggml_type(4), nullptr);
  EXPECT_EQ(parse_ggml_type("Q9"), std::nullopt);
  EXPECT_EQ(ggml_type_of(Dtype::unknown), std::nullopt);
  EXPECT_EQ(ggml_type_of(Dtype::u8), std::nullopt);
}

TEST(GgufValue, SaysWhatItIsAndNothingElse) {
  EXPECT_EQ(as_text(u32_value(7)), std::nullopt);
  EXPECT_EQ(as_unsigned(u32_value(7)), 7u);
  EXPECT_EQ(as_number(u32_value(7)), 7.0);
  EXPECT_EQ(as_unsigned(f32_value(7)), std::nullopt);
  EXPECT_EQ(as_unsigned(text_value("7")), std::nullopt);
  EXPECT_EQ(as_unsigned({.type = ValueType::i8, .bytes = "\xff"}), std::nullopt);
  EXPECT_EQ(as_number({.type = ValueType::i8, .bytes = "\xff"}), -1.0);
  EXPECT_TRUE(elements(text_value("a")).empty());
  const Value texts = array_value(ValueType::text, std::vector{text_value("a"), text_value("")});
  EXPECT_EQ(describe(texts), "[2 x text]");
  EXPECT_EQ(describe(text_value("a\x1b")), "\"a\\u{1b}\"");
  EXPECT_EQ(describe(f32_value(0.5f)), "0.5");
  EXPECT_EQ(describe({.type = ValueType::i8, .bytes = "\xff"}), "-1");
}

// ---- Odd files that are read

TEST(GgufFile, OddFilesAreReadWithANote) {
  const auto notes = [](const std::string& bytes, const OpenOptions& options = {}) {
    return parse_gguf(bytes, options)->notes();
  };
  using Notes = std::vector<std::string>;
  EXPECT_EQ(notes(gguf_image({}, {{"w", {8}, 0, 0}}, 32, 2)), Notes{});
  EXPECT_EQ(notes(gguf_image({}, {{"w", {3}, 0, 0}}, 12)), Notes{"20 bytes of padding are missing at the end"});
  EXPECT_EQ(notes(gguf_image({}, {{"w", {3}, 0, 0}}, 40), {.allow_trailing_bytes = true}),
            Notes{"8 bytes after the last tensor are ignored"});
  EXPECT_EQ(notes(gguf_image({}, {{"w", {8}, 0, 32}, {"v", {8}, 0, 0}}, 64)),
            Notes{"the tensors are not listed in the order of their data; llama.cpp refuses such a file"});
  EXPECT_EQ(notes(gguf_image({raw_key("k", 9, raw_array(8, 2, raw_text("\xff") + raw_text("\xfe")))}, {}, 0)),
            Notes{"2 texts are not valid UTF-8, first in \"k\""});
  EXPECT_EQ(notes("GGUF" + raw32(3) + raw64(0) + raw64(0)), Notes{});
}

TEST(GgufFile, DataInAnotherOrderIsFoundByName) {
  const std::string bytes = gguf_image({}, {{"w", {8}, 0, 32}, {"v", {2, 2}, 30, 0}}, 64);
  const auto file = parse_gguf(bytes);
  EXPECT_EQ(file->tensors()[0].name, "v");
  EXPECT_EQ(file->bytes(*file->find("v"))[0], std::byte{0});
  EXPECT_EQ(file->bytes(*file->find("w"))[0], std::byte{32});
  EXPECT_EQ(file->find("v")->dtype, Dtype::bf16);
  EXPECT_EQ(file->find("u"), nullptr);
}

TEST(GgufFile, ALargeArrayIsReadInOnePiece) {
  std::string numbers;
  for (std::uint32_t i = 0; i < 300'000; ++i) numbers += raw32(i);
  const auto file = parse_gguf(gguf_image({raw_key("k", 9, raw_array(4, 300'000, numbers))}, {}, 0));
  EXPECT_EQ(file->values()[0].second.bytes, numbers);
}

TEST(GgufFile, ArraysNestedAsDeepAsAllowed) {
  std::string bytes = raw_array(4, 1, raw32(7));
  for (int depth = 1; depth < 8; ++depth) bytes = raw_array(9, 1, bytes);
  const auto file = parse_gguf(gguf_image({raw_key("k", 9, bytes)}, {}, 0));
  Value value = file->values()[0].second;
  for (int depth = 0; depth < 8; ++depth) value = Value(elements(value).at(0));
  EXPECT_EQ(as_unsigned(value), 7u);
}

// ---- Files on disk

TEST(GgufFile, OpenReadsWhatParseReads) {
  const TestFolder folder;
  const std::string bytes = gguf_image({}, {{"a", {32768}, 24, 0}, {"b", {32768}, 24, 32768}}, 65536);
  const auto file = GgufFile::open(folder.write("x.gguf", bytes));
  const auto memory = parse_gguf(bytes);
  for (std::size_t i = 0; i < 2; ++i)
    EXPECT_TRUE(std::ranges::equal(file->bytes(file->tensors()[i]), memory->bytes(memory->tensors()[i])));
  file->prefetch(0, 65536);
  file->release(0, 65536);
  memory->prefetch(0, 65536);
  memory->release(0, 65536);
  file->check_unchanged();
  memory->check_unchanged();
}

TEST(GgufFile, AFileThatShrinksReadsZerosAndIsReported) {
  const TestFolder folder;
  const std::string path =
      folder.write("x.gguf", gguf_image({}, {{"a", {32768}, 24, 0}, {"b", {32768}, 24, 32768}}, 65536));
  const auto file = GgufFile::open(path);
  ASSERT_EQ(::truncate(path.c_str(), 8192), 0);
  const auto bytes = file->bytes(*file->find("b"));
  EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));  // would be SIGBUS
  expect_error(error_of([&] { file->check_unchanged(); }), ErrorCode::IO_CHANGED, {path, "8192 bytes"});
}

TEST(GgufFile, WhatIsNoFileIsRefused) {
  const TestFolder folder;
  expect_error(error_of([&] { GgufFile::open(folder.path()); }), ErrorCode::IO_KIND, {"a folder"});
  folder.write("adapter.gguf", "GGUF");
  expect_error(error_of([&] { GgufFile::open(folder / "adaptr.gguf"); }), ErrorCode::IO_OPEN, {"\"adapter.gguf\""});
}

}  // namespace
}  // namespace peft::gguf
