// Odd but real files, which must load; what is odd is told.
#include <set>

#include "support/test_files.h"

namespace peft::safetensors {
namespace {

std::string notes_of(const TensorFile& file) {
  std::string all;
  for (const std::string& note : file.notes()) all += note + "\n";
  return all;
}

TEST(Compat, MetadataNullEmptyOrAbsent) {
  const std::string w = entry("w", "U8", "[4]", "[0,4]");
  const auto null = parse(image("{\"__metadata__\":null," + w + "}", 4));
  EXPECT_NE(notes_of(*null).find("__metadata__ is null"), std::string::npos);
  EXPECT_TRUE(null->metadata().empty());
  EXPECT_TRUE(parse(image("{\"__metadata__\":{}," + w + "}", 4))->metadata().empty());
  EXPECT_TRUE(parse(image("{" + w + "}", 4))->metadata().empty());
  const auto last = parse(image("{" + w + R"(,"__metadata__":{"format":"pt","x":"\u00e9"}})", 4));
  EXPECT_EQ(last->metadata(), (Metadata{{"format", "pt"}, {"x", "é"}}));
}

TEST(Compat, NoTensors) {
  for (const char* json : {"{}", "{}      ", "  {}  ", "{\"__metadata__\":{\"a\":\"b\"}}"}) {
    const auto file = parse(image(json));
    EXPECT_TRUE(file->tensors().empty()) << json;
    EXPECT_EQ(file->find("w"), nullptr);
  }
}

TEST(Compat, WhiteSpaceOnBothSides) {
  const auto file = parse(image("\n\t {" + entry("w", "U8", "[1]", "[0,1]") + "}\r\n\t ", 1));
  EXPECT_NE(notes_of(*file).find("white space precedes"), std::string::npos);
}

TEST(Compat, EntriesInAnyOrderAndUnalignedData) {
  const std::string bytes =
      image("{" + entry("a", "U8", "[2]", "[4,6]") + "," + entry("b", "F32", "[1]", "[0,4]") + "}", 6);
  const auto file = parse(bytes);
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->tensors()[0].name, "b");
  EXPECT_EQ(file->tensors()[1].name, "a");
  EXPECT_EQ(file->bytes(*file->find("a")).size(), 2u);
  EXPECT_EQ(file->bytes(*file->find("a"))[0], std::byte{4});
  EXPECT_NE(notes_of(*file).find("not at a multiple of 8"), std::string::npos);
}

TEST(Compat, ScalarsAndEmptyTensors) {
  const auto file =
      parse(image("{" + entry("scalar", "F64", "[]", "[0,8]") + "," + entry("z", "F32", "[0]", "[8,8]") + "," +
                      entry("y", "F32", "[7,0,3]", "[8,8]") + "," + entry("last", "U8", "[1]", "[8,9]") + "," +
                      entry("end", "U8", "[0]", "[9,9]") + "}",
                  9));
  std::vector<std::string_view> names;
  for (const TensorInfo& tensor : file->tensors()) names.push_back(tensor.name);
  EXPECT_EQ(names, (std::vector<std::string_view>{"scalar", "y", "z", "last", "end"}));
  EXPECT_TRUE(file->find("scalar")->shape.empty());
  EXPECT_EQ(file->find("y")->shape.size(), 3u);
}

TEST(Compat, ALargeDimensionAfterAZeroIsAnEmptyTensor) {
  const auto file = parse(image("{" + entry("w", "F64", "[0,9223372036854775807,4]", "[0,0]") + "}"));
  EXPECT_EQ(file->tensors()[0].bytes(), 0u);
}

TEST(Compat, UnknownDtypeIsCarriedByItsByteRange) {
  const auto file = parse(image("{" + entry("w", "F7", "[3,3]", "[0,8]") + "}", 8));
  const TensorInfo& tensor = file->tensors()[0];
  EXPECT_EQ(tensor.dtype, Dtype::unknown);
  EXPECT_EQ(tensor.dtype_name, "F7");
  EXPECT_EQ(tensor.bytes(), 8u);
  EXPECT_NE(notes_of(*file).find("1 of an unknown dtype, first \"F7\" in \"w\""), std::string::npos);
}

TEST(Compat, UnknownFieldsAreTold) {
  const std::string json = R"({"w":{"dtype":"U8","strides":[1],"shape":[1],"data_offsets":[0,1]}})";
  EXPECT_NE(notes_of(*parse(image(json, 1))).find("1 of an unknown field, first \"strides\" in \"w\""),
            std::string::npos);
}

TEST(Compat, TrailingBytesWhenAllowed) {
  const std::string bytes = image("{" + entry("w", "U8", "[1]", "[0,1]") + "}", 5);
  const auto file = parse(bytes, {.allow_trailing_bytes = true});
  EXPECT_EQ(file->bytes(file->tensors()[0]).size(), 1u);
  EXPECT_NE(notes_of(*file).find("4 bytes after the last tensor"), std::string::npos);
}

TEST(Compat, AllDtypesWithTheirSizes) {
  std::string json = "{";
  std::size_t at = 0;
  for (const DtypeInfo& row : dtypes()) {
    const std::size_t bytes = static_cast<std::size_t>(row.bits);  // 8 elements
    json += entry("t_" + std::string(row.name), row.name, "[2,4]",
                  "[" + std::to_string(at) + "," + std::to_string(at + bytes) + "]") +
            ",";
    at += bytes;
  }
  json.back() = '}';
  const auto file = parse(image(json, at));
  for (const DtypeInfo& row : dtypes()) {
    const TensorInfo* tensor = file->find("t_" + std::string(row.name));
    ASSERT_NE(tensor, nullptr) << row.name;
    EXPECT_EQ(tensor->dtype, row.dtype);
    EXPECT_EQ(tensor->dtype_name, row.name);
  }
}

TEST(Compat, EscapedNamesAndNamesWithSlashes) {
  const auto file = parse(image("{" + entry("a\\\"\\\\\\/\\u00e9\\ud83d\\ude00", "U8", "[1]", "[0,1]") + "," +
                                    entry("../etc/passwd", "U8", "[1]", "[1,2]") + "}",
                                2));
  EXPECT_NE(file->find("a\"\\/é😀"), nullptr);
  EXPECT_NE(file->find("../etc/passwd"), nullptr);
}

TEST(Compat, MinusZeroElsewhereIsNoFault) {
  const auto file = parse(image(
      R"({"__metadata__":{"a":"[-0]","b\"-0":",-0"},"x-0":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"f":[-0.5,1e-0]}})",
      1));
  EXPECT_NE(file->find("x-0"), nullptr);
}

TEST(Compat, NestedUnknownFieldsUpToTheLimit) {
  const std::string json = R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"f":)" + std::string(62, '[') +
                           std::string(62, ']') + "}}";
  EXPECT_EQ(parse(image(json, 1))->tensors().size(), 1u);
}

// The parser's memory is reused: what one file gave must not change with the next.
TEST(Compat, FilesDoNotShareMemory) {
  const std::string first = image("{" + entry("one", "F7", "[3,1]", "[0,3]") + "}", 3);
  const std::string second = image("{" + entry("two", "F9", "[5,7,9]", "[0,4]") + "}", 4);
  const auto a = parse(first);
  const auto b = parse(second);
  EXPECT_EQ(a->tensors()[0].name, "one");
  EXPECT_EQ(a->tensors()[0].dtype_name, "F7");
  EXPECT_EQ(std::vector(a->tensors()[0].shape.begin(), a->tensors()[0].shape.end()), (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(b->tensors()[0].name, "two");
}

TEST(Compat, ManyTensorsAreAllFound) {
  std::string json = "{";
  for (int i = 0; i < 5000; ++i)
    json += entry("layer." + std::to_string(i), "U8", "[" + std::to_string(i % 3) + ",0]", "[0,0]") + ",";
  json.back() = '}';
  const auto file = parse(image(json));
  std::set<const TensorInfo*> found;
  for (int i = 0; i < 5000; ++i) {
    const TensorInfo* tensor = file->find("layer." + std::to_string(i));
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->shape[0], i % 3);
    found.insert(tensor);
  }
  EXPECT_EQ(found.size(), 5000u);
  EXPECT_EQ(file->find("layer.5000"), nullptr);
}

}  // namespace
}  // namespace peft::safetensors
