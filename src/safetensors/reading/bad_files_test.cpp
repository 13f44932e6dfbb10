// Files that must be refused: one row each, with the code and what its message must say. Row numbers are those of
// docs/format.md's list.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <chrono>

#include "safetensors/reading/header.h"
#include "support/test_files.h"

namespace peft::safetensors {
namespace {

struct BadFile {
  int row;
  const char* what;
  std::function<std::string()> build;
  ErrorCode code;
  std::vector<std::string> parts;
};

std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets, std::size_t data) {
  return image("{" + entry("w", dtype, shape, offsets) + "}", data);
}

std::string zip(std::string_view first_name) {
  std::string bytes("PK\x03\x04\x00\x00\x08\x08\x00\x00", 10);
  bytes.resize(26, '\0');
  bytes += static_cast<char>(first_name.size());
  bytes += std::string("\0\0\0", 3);
  return bytes + std::string(first_name) + std::string(64, 'x');
}

std::string fixed(std::string_view bytes) { return std::string(bytes); }

// "f":[[...]] to a depth, in a field that would be ignored.
std::string nested(std::size_t depth) {
  return image(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"f":)" + std::string(depth, '[') +
                   std::string(depth, ']') + "}}",
               4);
}

std::string many_dimensions(std::size_t rank) {
  std::string shape = "[1";
  for (std::size_t i = 1; i < rank; ++i) shape += ",1";
  return one("F32", shape + "]", "[0,4]", 4);
}

std::string many_empty_entries(std::size_t count) {
  std::string json = "{";
  for (std::size_t i = 0; i < count; ++i) json += "\"" + std::to_string(i) + "\":{},";
  json.back() = '}';
  return image(json);
}

using enum ErrorCode;

std::vector<BadFile> bad_lengths() {
  return {
      {1, "empty file", [] { return std::string(); }, ST_SHORT, {"at least 8 bytes", "got 0 bytes", "download"}},
      {2, "7 bytes", [] { return std::string(7, '\0'); }, ST_SHORT, {"at least 8", "got 7 bytes"}},
      {3,
       "header longer than the file",
       [] { return length_bytes(4096) + "{}"; },
       ST_HDRLEN,
       {"4096 bytes", "at most 2 bytes in a file of 10 bytes", "download"}},
      {4,
       "header of 100000001 bytes",
       [] { return length_bytes(100'000'001) + "{}"; },
       ST_HDRBIG,
       {"100000001", "at most 100000000", "is this a safetensors file?"}},
      {5, "2^64-1", [] { return length_bytes(~0ull) + "{}"; }, ST_HDRBIG, {"18446744073709551615"}},
      {5, "2^63", [] { return length_bytes(1ull << 63) + "{}"; }, ST_HDRBIG, {"9223372036854775808"}},
      {5, "2^64-8", [] { return length_bytes(~0ull - 7) + "{}"; }, ST_HDRBIG, {"18446744073709551608"}},
      {6, "empty header", [] { return image(""); }, ST_HDRJSON, {"the header is empty", "0 bytes"}},
      {6, "header of spaces", [] { return image("        "); }, ST_HDRJSON, {"the header is empty", "8 bytes"}},
  };
}

std::vector<BadFile> bad_texts() {
  const std::string depth = "at most 64 levels";
  return {
      {7, "not UTF-8", [] { return image("{\"a\xff\":1}"); }, ST_UTF8, {"byte 0xff at offset 3"}},
      {8, "overlong", [] { return image("{\"\xc0\xaf\":1}"); }, ST_UTF8, {"0xc0 at offset 2"}},
      {8, "surrogate bytes", [] { return image("{\"\xed\xa0\x80\":1}"); }, ST_UTF8, {"offset 2"}},
      {8,
       "lone high surrogate",
       [] { return image(R"({"\ud800":1})"); },
       ST_UTF8,
       {"\\ud800 at offset 2", "surrogate"}},
      {8, "lone low surrogate", [] { return image(R"({"a\udc00":1})"); }, ST_UTF8, {"\\udc00 at offset 3"}},
      {8, "high surrogate and a letter", [] { return image(R"({"\ud800\u0041":1})"); }, ST_UTF8, {"\\ud800"}},
      {9,
       "cut in the middle",
       [] { return image(R"({"w":{"dtype":"F32","sh)"); },
       ST_HDRJSON,
       {"not valid JSON at offset", "\"w\"", "missing closing quote"}},
      {9, "cut after a value", [] { return image(R"({"w":{"dtype":"F32")"); }, ST_HDRJSON, {"expected"}},
      {9, "trailing comma", [] { return image(R"({"w":{},})"); }, ST_HDRJSON, {"offset 8"}},
      {9, "leading zero", [] { return image(R"({"w":{"shape":[01]}})"); }, ST_HDRJSON, {"not valid JSON at offset"}},
      {9, "mismatched brackets", [] { return image(R"({"w":[}])"); }, ST_HDRJSON, {"not valid JSON at offset"}},
      {9, "number beyond a double", [] { return image(R"({"w":{"x":1e999}})"); }, ST_HDRJSON, {"not valid JSON"}},
      {10, "array", [] { return image("[1,2]"); }, ST_HDRJSON, {"not a JSON object", "0x5b at offset 0"}},
      {10, "number", [] { return image("42"); }, ST_HDRJSON, {"not a JSON object"}},
      {10, "byte order mark", [] { return image("\xef\xbb\xbf{}"); }, ST_HDRJSON, {"not a JSON object", "0xef"}},
      {11, "nested 100000 deep", [] { return nested(100'000); }, ST_DEPTH, {"at most 64 levels", "offset 119"}},
      {11, "nested 63 deep in the entry", [] { return nested(63); }, ST_DEPTH, {"at most 64 levels"}},
      {12, "text after the object", [] { return image("{} x"); }, ST_HDRPAD, {"0x78 at offset 3"}},
      {12,
       "NUL padding",
       [] { return image(std::string("{}\0\0\0\0\0\0", 8)); },
       ST_HDRPAD,
       {"0x00 at offset 2", "nothing but spaces"}},
      {12, "a second object", [] { return image("{}{}"); }, ST_HDRPAD, {"0x7b at offset 2"}},
  };
}

std::vector<BadFile> bad_keys() {
  return {
      {13,
       "tensor twice",
       [] { return image("{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("w", "U8", "[2]", "[4,6]") + "}", 6); },
       ST_DUP,
       {"\"w\"", "[0, 4) and [4, 6)", "ambiguous"}},
      {13,
       "tensor twice, one escaped",
       [] {
         return image("{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("\\u0077", "U8", "[0]", "[4,4]") + "}", 4);
       },
       ST_DUP,
       {"\"w\""}},
      {13,
       "tensor twice, same bytes",
       [] { return image("{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("w", "F32", "[1]", "[0,4]") + "}", 4); },
       ST_DUP,
       {"\"w\""}},
      {14,
       "field twice",
       [] { return image(R"({"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1); },
       ST_DUP,
       {"\"w\"", "\"shape\" appears twice"}},
      {14,
       "unknown field twice",
       [] { return image(R"({"w":{"x":1,"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":2}})", 1); },
       ST_DUP,
       {"\"w\"", "\"x\" appears twice"}},
      {14,
       "twice inside an unknown field",
       [] { return image(R"({"w":{"x":[{"y":1,"y":2}],"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1); },
       ST_DUP,
       {"\"w\"", "\"y\" appears twice"}},
      {15,
       "__metadata__ twice",
       [] { return image(R"({"__metadata__":{},"__metadata__":{}})"); },
       ST_DUP,
       {"__metadata__ appears twice"}},
      {15,
       "metadata key twice",
       [] { return image(R"({"__metadata__":{"a":"1","\u0061":"2"}})"); },
       ST_DUP,
       {"\"a\" appears twice"}},
      {16,
       "metadata value a number",
       [] { return image(R"({"__metadata__":{"step":3}})"); },
       ST_META,
       {"\"step\"", "an integer", "must be strings"}},
      {16,
       "metadata value null",
       [] { return image(R"({"__metadata__":{"step":null}})"); },
       ST_META,
       {"\"step\"", "null"}},
      {16, "metadata an array", [] { return image(R"({"__metadata__":[]})"); }, ST_META, {"an array"}},
      {17,
       "no dtype",
       [] { return image(R"({"w":{"shape":[1],"data_offsets":[0,1]}})", 1); },
       ST_FIELD,
       {"\"w\"", "\"dtype\" is missing"}},
      {17,
       "no shape",
       [] { return image(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1); },
       ST_FIELD,
       {"\"w\"", "\"shape\" is missing"}},
      {17,
       "no offsets",
       [] { return image(R"({"w":{"dtype":"U8","shape":[1]}})", 1); },
       ST_FIELD,
       {"\"w\"", "\"data_offsets\" is missing"}},
      {17,
       "dtype a number",
       [] { return image(R"({"w":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1); },
       ST_FIELD,
       {"\"w\"", "dtype", "8"}},
      {17,
       "shape null",
       [] { return image(R"({"w":{"dtype":"U8","shape":null,"data_offsets":[0,1]}})", 1); },
       ST_FIELD,
       {"shape", "null"}},
      {17, "entry a list", [] { return image(R"({"w":["U8",[1],[0,1]]})", 1); }, ST_FIELD, {"\"w\"", "an array"}},
      {33, "empty name", [] { return image("{" + entry("", "U8", "[1]", "[0,1]") + "}", 1); }, ST_NAME, {"empty name"}},
      {33,
       "name of 1 MB",
       [] { return image("{" + entry(std::string(1 << 20, 'n'), "U8", "[1]", "[0,1]") + "}", 1); },
       ST_NAME,
       {"at most 4096 bytes", "1048576 bytes"}},
  };
}

std::vector<BadFile> bad_shapes() {
  return {
      {19,
       "negative dimension",
       [] { return one("U8", "[4,-1]", "[0,4]", 4); },
       ST_SHAPE,
       {"\"w\"", "dimension 1", "-1"}},
      {19, "-0", [] { return one("U8", "[-0]", "[0,0]", 0); }, ST_HDRJSON, {"-0", "offset"}},
      {19, "fraction", [] { return one("U8", "[2.0]", "[0,2]", 2); }, ST_SHAPE, {"\"w\"", "dimension 0", "2.0"}},
      {19, "exponent", [] { return one("U8", "[1e0]", "[0,1]", 1); }, ST_SHAPE, {"dimension 0"}},
      {19, "text", [] { return one("U8", R"(["3"])", "[0,3]", 3); }, ST_SHAPE, {"dimension 0", "string \"3\""}},
      {19,
       "2^64",
       [] { return one("U8", "[1,18446744073709551616]", "[0,1]", 1); },
       ST_SHAPE,
       {"\"w\"", "dimension 1", "18446744073709551616"}},
      {20,
       "product of dimensions",
       [] { return one("U8", "[2,18446744073709551614]", "[0,4]", 4); },
       ST_OVERFLOW,
       {"\"w\"", "[2, 18446744073709551614]"}},
      {20, "prefix product", [] { return one("U8", "[9223372036854775808,4,0]", "[0,0]", 0); }, ST_OVERFLOW, {"\"w\""}},
      {20,
       "dimension of 2^63 in an empty tensor",
       [] { return one("U8", "[0,9223372036854775808,4]", "[0,0]", 0); },
       ST_LIMIT,
       {"\"w\"", "9223372036854775808"}},
      {21,
       "product times dtype",
       [] { return one("I32", "[2,9223372036854775807]", "[0,4]", 4); },
       ST_OVERFLOW,
       {"\"w\"", "[2, 9223372036854775807]", "I32"}},
      {22, "rank 70000", [] { return many_dimensions(70'000); }, ST_LIMIT, {"\"w\"", "at most 16", "70000"}},
      {22, "rank 17", [] { return many_dimensions(17); }, ST_LIMIT, {"at most 16", "got 17"}},
      {23, "one offset", [] { return one("U8", "[4]", "[4]", 4); }, ST_OFFSETS, {"\"w\"", "2 numbers", "got 1"}},
      {23, "three offsets", [] { return one("U8", "[4]", "[0,4,4]", 4); }, ST_OFFSETS, {"\"w\"", "2 numbers", "got 3"}},
      {23,
       "offset of 2^64",
       [] { return one("U8", "[4]", "[0,18446744073709551616]", 4); },
       ST_OFFSETS,
       {"\"w\"", "number 1", "18446744073709551616"}},
      {23,
       "offset with a fraction",
       [] { return one("U8", "[4]", "[0,4.0]", 4); },
       ST_OFFSETS,
       {"\"w\"", "number 1", "4.0"}},
      {24,
       "end before begin",
       [] { return one("U8", "[4]", "[8,4]", 8); },
       ST_OFFSETS,
       {"\"w\"", "at least 8", "got 4"}},
      {25,
       "span too long",
       [] { return one("F32", "[4]", "[0,17]", 17); },
       ST_SIZE,
       {"\"w\"", "[4]", "F32", "expected 16 bytes", "17 bytes"}},
      {25, "span of a scalar", [] { return one("F64", "[]", "[0,4]", 4); }, ST_SIZE, {"expected 8 bytes", "4 bytes"}},
      {25, "span of an empty tensor", [] { return one("F64", "[0]", "[0,8]", 8); }, ST_SIZE, {"expected 0 bytes"}},
      {31, "12 bits of F4", [] { return one("F4", "[1,3]", "[0,1]", 1); }, ST_BITS, {"\"w\"", "4 bits", "[1, 3]"}},
      {31, "18 bits of F6", [] { return one("F6_E2M3", "[3]", "[0,2]", 2); }, ST_BITS, {"6 bits"}},
  };
}

std::vector<BadFile> bad_coverage() {
  const std::string a = entry("a", "U8", "[4]", "[0,4]");
  return {
      {26,
       "hole",
       [=] { return image("{" + a + "," + entry("b", "U8", "[4]", "[6,10]") + "}", 10); },
       ST_HOLE,
       {"\"b\"", "\"a\"", "2 bytes"}},
      {27,
       "overlap",
       [=] { return image("{" + a + "," + entry("b", "U8", "[4]", "[3,7]") + "}", 7); },
       ST_OVERLAP,
       {"\"b\"", "\"a\"", "[3, 7) and [0, 4)"}},
      {27,
       "alias",
       [=] { return image("{" + a + "," + entry("b", "U8", "[4]", "[0,4]") + "}", 4); },
       ST_OVERLAP,
       {"\"b\"", "\"a\""}},
      {28,
       "first tensor at 8",
       [] { return image("{" + entry("a", "U8", "[4]", "[8,12]") + "}", 12); },
       ST_HOLE,
       {"\"a\"", "8 bytes before the first tensor"}},
      {29,
       "one byte short",
       [=] { return image("{" + a + "," + entry("b", "U8", "[4]", "[4,8]") + "}", 7); },
       ST_TRUNC,
       {"\"b\"", "bytes in all", "checksum"}},
      {29,
       "all data missing",
       [=] { return image("{" + a + "," + entry("b", "U8", "[4]", "[4,8]") + "}", 0); },
       ST_TRUNC,
       {"\"a\""}},
      {29,
       "an end near 2^64",
       [] { return one("unknown", "[1]", "[0,18446744073709551615]", 4); },
       ST_TRUNC,
       {"\"w\"", "more than 2^64 bytes"}},
      {30,
       "trailing bytes",
       [=] { return image("{" + a + "}", 7); },
       ST_TRAIL,
       {"3 bytes follow", "--allow-trailing-bytes"}},
      {30, "bytes after no tensor", [] { return image("{}", 1); }, ST_TRAIL, {"1 bytes follow"}},
      {32,
       "more tensors than the limit",
       [] { return many_empty_entries(1'000'002); },
       ST_LIMIT,
       {"at most 1000000", "1000002", "--max-tensors"}},
  };
}

std::vector<BadFile> other_formats() {
  return {
      {34,
       "Git LFS pointer",
       [] {
         return fixed(
             "version https://git-lfs.github.com/spec/v1\noid "
             "sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 12345\n");
       },
       NOT_ST,
       {"Git LFS pointer", "git lfs pull"}},
      {35, "HTML", [] { return fixed("<!DOCTYPE html><html><body>404</body></html>"); }, NOT_ST, {"HTML", "token"}},
      {35,
       "HTML after white space",
       [] { return fixed("\n\n  <HTML lang=en><body>Please log in</body>"); },
       NOT_ST,
       {"HTML"}},
      {36, "torch zip", [] { return zip("archive/data.pkl"); }, E_PICKLE, {"pickle", "safetensors"}},
      {36, "npz", [] { return zip("arr_0.npy"); }, NOT_ST, {".npz"}},
      {36, "zip", [] { return zip("readme.txt"); }, NOT_ST, {"zip archive"}},
      {36, "pickle", [] { return fixed("\x80\x02}q\x01X\x04zzzzzzzzz."); }, E_PICKLE, {"a pickle"}},
      {36, "GGUF", [] { return std::string("GGUF\x03\0\0\0zzzzzzzz", 16); }, NOT_ST, {"GGUF"}},
      {36, "gzip", [] { return std::string("\x1f\x8b\x08\0\0\0\0\0\0\x03zzzzzzz", 17); }, NOT_ST, {"gzip"}},
      {36, "NumPy", [] { return std::string("\x93NUMPY\x01\0v\0{'descr'", 18); }, NOT_ST, {"NumPy"}},
      {36, "JSON", [] { return fixed("{\"r\": 8, \"lora_alpha\": 16}"); }, NOT_ST, {"JSON"}},
  };
}

class BadFiles : public testing::TestWithParam<BadFile> {};

TEST_P(BadFiles, AreRefusedWithTheirReason) {
  const BadFile& bad = GetParam();
  const std::string bytes = bad.build();
  const auto start = std::chrono::steady_clock::now();
  const auto in_memory = error_of([&] { parse(bytes); });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  auto parts = bad.parts;
  parts.emplace_back("test.safetensors");
  expect_error(in_memory, bad.code, parts);

  const TestFolder folder;
  const std::string path = folder.write("test.safetensors", bytes);
  const auto on_disk = error_of([&] { TensorFile::open(path); });
  ASSERT_TRUE(on_disk.has_value());
  EXPECT_EQ(on_disk->detail().problem, in_memory->detail().problem);
  EXPECT_EQ(on_disk->detail().file, path);
}

std::string row_name(const testing::TestParamInfo<BadFile>& tested) {
  std::string name = "row" + std::to_string(tested.param.row) + "_";
  for (const char* c = tested.param.what; *c != 0; ++c)
    name += std::isalnum(static_cast<unsigned char>(*c)) != 0 ? *c : '_';
  return name + "_" + std::to_string(tested.index);
}

INSTANTIATE_TEST_SUITE_P(Lengths, BadFiles, testing::ValuesIn(bad_lengths()), row_name);
INSTANTIATE_TEST_SUITE_P(Texts, BadFiles, testing::ValuesIn(bad_texts()), row_name);
INSTANTIATE_TEST_SUITE_P(Keys, BadFiles, testing::ValuesIn(bad_keys()), row_name);
INSTANTIATE_TEST_SUITE_P(Shapes, BadFiles, testing::ValuesIn(bad_shapes()), row_name);
INSTANTIATE_TEST_SUITE_P(Coverage, BadFiles, testing::ValuesIn(bad_coverage()), row_name);
INSTANTIATE_TEST_SUITE_P(OtherFormats, BadFiles, testing::ValuesIn(other_formats()), row_name);

// The length's first bytes may look like the start of another format: the reason must still be the header's own.
TEST(BadFile, LengthsThatLookLikeOtherFormats) {
  for (const std::size_t length : {0x280, 0x380, 0x480, 0x580, 0x7b, 0x213c}) {  // 80 02 .. 80 05, "{", "<!"
    std::string json = "{\"w\":1}";
    json.resize(length, ' ');
    expect_error(error_of([&] { parse(image(json)); }), ST_FIELD, {"\"w\""});
  }
}

// Row 27, large: every one of 100,000 tensors on the same bytes.
TEST(BadFile, AHundredThousandAliasesAreRefusedQuickly) {
  std::string json = "{";
  for (int i = 0; i < 100'000; ++i) json += entry("t" + std::to_string(i), "U8", "[4]", "[0,4]") + ",";
  json.back() = '}';
  const std::string bytes = image(json, 4);
  const auto start = std::chrono::steady_clock::now();
  expect_error(error_of([&] { parse(bytes); }), ST_OVERLAP, {"\"t1\"", "\"t0\""});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

// Row 32: as many entries as 100 MB hold. Bounded before the parser allocates for them.
TEST(BadFile, AHeaderOfCommasIsRefusedBeforeItIsParsed) {
  std::string json = "{\"w\":[" + std::string(60'000'000, ',') + "]}";
  expect_error(error_of([&] { parse(image(json)); }), ST_LIMIT, {"60000000 commas", "--max-tensors"});
}

// Row 33: odd names are accepted, and escaped wherever they are shown.
TEST(BadFile, ControlCharactersInNamesAreEscapedInMessages) {
  const std::string name = R"(a\u0000b\u001b[2Jc\u202e)";
  const auto file = parse(image("{" + entry(name, "U8", "[1]", "[0,1]") + "}", 1));
  EXPECT_NE(file->find(std::string_view("a\0b\x1b[2Jc\u202e", 11)), nullptr);
  expect_error(error_of([&] { parse(image("{" + entry(name, "U8", "[2]", "[0,1]") + "}", 1)); }), ST_SIZE,
               {"a\\u{0}b\\u{1b}[2Jc\\u{202e}"});
}

TEST(BadFile, Row37OtherKindsOfPath) {
  const TestFolder folder;
  expect_error(error_of([&] { TensorFile::open(folder.path()); }), IO_KIND, {folder.path(), "a folder"});
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_error(error_of([&] { TensorFile::open(pipe); }), IO_KIND, {pipe, "a named pipe"});
  expect_error(error_of([&] { TensorFile::open("/dev/zero"); }), IO_KIND, {"/dev/zero", "a device"});
  const std::string path = folder / "socket";
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  expect_error(error_of([&] { TensorFile::open(path); }), IO_KIND, {path, "a socket"});
  ::close(fd);
}

TEST(BadFile, Row38Missing) {
  const TestFolder folder;
  folder.write("adapter_model.safetensors", image("{}"));
  expect_error(error_of([&] { TensorFile::open(folder / "adapter_modle.safetensors"); }), IO_OPEN,
               {"adapter_modle.safetensors", "No such file", "the folder has \"adapter_model.safetensors\""});
  expect_error(error_of([&] { TensorFile::open(folder / "no/such/x"); }), IO_OPEN,
               {"No such file", "the folder cannot be read"});
  ::symlink("loop", (folder / "loop").c_str());
  expect_error(error_of([&] { TensorFile::open(folder / "loop"); }), IO_OPEN, {"symbolic links"});
}

TEST(BadFile, Row38NoPermission) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const TestFolder folder;
  const std::string secret = folder.write("secret.safetensors", image("{}"));
  ::chmod(secret.c_str(), 0);
  expect_error(error_of([&] { TensorFile::open(secret); }), IO_OPEN, {"secret.safetensors", "Permission denied"});
}

}  // namespace
}  // namespace peft::safetensors
