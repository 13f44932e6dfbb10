// State dicts that torch wrote (tests/pickle/make.py), and every kind of file that is refused.
#include "pickle/pickle_file.h"

#include <nlohmann/json.hpp>

#include "fuzz/check_pickle.h"
#include "support/pickle_images.h"
#include "support/test_files.h"
#include "test_paths.h"

namespace peft::pickle {
namespace {

namespace fs = std::filesystem;
using safetensors::bytes_of;
using safetensors::error_of;
using safetensors::expect_error;
using safetensors::read_text;
using Json = nlohmann::json;

const fs::path kFolder = fs::path(PEFT_SOURCE_DIR) / "tests" / "pickle";

Json listing() { return Json::parse(read_text((kFolder / "listing.json").string())); }

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += kDigits[std::to_integer<unsigned>(byte) / 16];
    text += kDigits[std::to_integer<unsigned>(byte) % 16];
  }
  return text;
}

std::optional<Error> error_in(const std::string& image) {
  return error_of([&] { PickleFile::parse(bytes_of(image), "test.bin"); });
}

TEST(PickleFile, HasTheTensorsThatTorchLoads) {
  int files = 0;
  const Json all = listing().at("good");
  for (const auto& [name, expected] : all.items()) {
    SCOPED_TRACE(name);
    ++files;
    const auto file = PickleFile::open((kFolder / name).string());
    EXPECT_EQ(file->tensors().size(), expected.size());
    for (const auto& [key, tensor] : expected.items()) {
      const TensorInfo* found = file->find(key);
      ASSERT_NE(found, nullptr) << key;
      EXPECT_EQ(found->dtype, parse_dtype(tensor.at("dtype").get<std::string>())) << key;
      EXPECT_EQ(std::vector<std::int64_t>(found->shape.begin(), found->shape.end()),
                tensor.at("shape").get<std::vector<std::int64_t>>())
          << key;
      EXPECT_EQ(hex(file->bytes(*found)), tensor.at("bytes").get<std::string>()) << key;
    }
    file->check_unchanged();
  }
  EXPECT_EQ(files, 5);
}

TEST(PickleFile, EverythingElseOfTorchIsRefusedByName) {
  int files = 0;
  const Json all = listing().at("refused");
  for (const auto& [name, expected] : all.items()) {
    SCOPED_TRACE(name);
    ++files;
    const auto error = error_of([&, file = kFolder / name] { PickleFile::open(file.string()); });
    ASSERT_TRUE(error.has_value()) << "accepted";
    EXPECT_EQ(info(error->code()).name, expected.at("code").get<std::string>()) << error->what();
    for (const Json& word : expected.at("words"))
      EXPECT_NE(std::string(error->what()).find(word.get<std::string>()), std::string::npos) << error->what();
  }
  EXPECT_EQ(files, 11);
}

struct Wrong {
  const char* what;
  std::string image;
  ErrorCode code;
  std::vector<std::string> words;
};

std::string with(std::string text, const std::string& from, const std::string& to) {
  text.replace(text.find(from), from.size(), to);
  return text;
}

std::vector<Wrong> wrong_files() {
  using enum ErrorCode;
  const std::string good = state_dict_of("x", 12, {3, 4});
  const std::string archive = file_of(good);
  const auto pickled = [](const std::string& bytes) { return file_of(bytes); };
  return {
      {"nothing", "", PK_ARCHIVE, {}},
      {"bytes after the end", archive + "x", PK_ARCHIVE, {"end"}},
      {"bytes before the archive", "x" + archive, PK_ARCHIVE, {}},
      {"no pickle", archive_image({{"a/data/0", "1234"}}), E_PICKLE, {"data.pkl"}},
      {"two folders", archive_image({{"a/data.pkl", good}, {"b/data/0", "1"}}), PK_ARCHIVE, {"b/data/0"}},
      {"an entry twice", archive_image({{"a/data.pkl", good}, {"a/data.pkl", good}}), PK_ARCHIVE, {"data.pkl"}},
      {"no storage", archive_image({{"a/data.pkl", good}}), PK_ARCHIVE, {"a/data/0"}},
      {"big-endian", archive_image({{"a/data.pkl", good}, {"a/byteorder", "big"}}), E_PICKLE, {"byte order"}},
      {"a damaged pickle", with(archive, "_rebuild_tensor_v2", "_rebuild_tensor_v4"), PK_ARCHIVE, {"checksum"}},
      {"another function",
       pickled(with(good, "torch._utils\n_rebuild_tensor_v2", "posix\nsystem")),
       E_PICKLE,
       {"posix.system"}},
      {"eval",
       pickled("\x80\x02"
               "cbuiltins\neval\n" +
               text_of("1") + "\x85R."),
       E_PICKLE,
       {"builtins.eval"}},
      {"an instance", pickled("\x80\x02(ios\nsystem\n."), E_PICKLE, {"opcode"}},
      {"NEWOBJ",
       pickled("\x80\x02"
               "ccollections\nOrderedDict\n)\x81."),
       E_PICKLE,
       {"0x81"}},
      {"EXT1", pickled("\x80\x02\x82\x01."), E_PICKLE, {"0x82"}},
      {"protocol 0", pickled("(dp0\n."), PK_STREAM, {"protocol"}},
      {"cut off", pickled(good.substr(0, good.size() - 1)), PK_STREAM, {"ends too early"}},
      {"bytes after STOP", pickled(good + "x"), PK_STREAM, {"follow"}},
      {"an empty stack", pickled("\x80\x02R."), PK_STREAM, {"stack"}},
      {"a mark too many", pickled("\x80\x02(}."), PK_STREAM, {}},
      {"a value never kept", pickled("\x80\x02h\x07."), PK_STREAM, {"recalled"}},
      {"a list", pickled("\x80\x02]."), E_PICKLE, {"dictionary"}},
      {"a number as a key", pickled(state_dict(int_of(1) + tensor_of(12, {3, 4}, {4, 1}))), E_PICKLE, {"key"}},
      {"another storage size", pickled(state_dict_of("x", 11, {3, 3})), PK_TENSOR, {"storage", "x"}},
      {"beyond the storage", pickled(state_dict_of("x", 12, {3, 5})), PK_TENSOR, {"larger", "[3, 5]"}},
      {"an offset beyond", pickled(state_dict(text_of("x") + tensor_of(12, {3, 4}, {4, 1}, 1))), PK_TENSOR, {"larger"}},
      {"a negative offset", pickled(state_dict(text_of("x") + tensor_of(12, {3, 4}, {4, 1}, -4))), PK_TENSOR, {"x"}},
      {"a negative size", pickled(state_dict(text_of("x") + tensor_of(12, {-3, 4}, {4, 1}))), PK_TENSOR, {"size"}},
      {"columns", pickled(state_dict(text_of("x") + tensor_of(12, {3, 4}, {1, 3}))), PK_TENSOR, {"contiguous"}},
      {"fewer strides", pickled(state_dict(text_of("x") + tensor_of(12, {3, 4}, {1}))), PK_TENSOR, {"contiguous"}},
      {"a huge shape",
       pickled(state_dict(text_of("x") + tensor_of(12, {2000000000, 2000000000, 2000000000}, {0, 0, 1}))),
       PK_TENSOR,
       {"x"}},
      {"one name twice",
       pickled(state_dict(text_of("x") + tensor_of(12, {3, 4}, {4, 1}) + text_of("x") + tensor_of(12, {12}, {1}))),
       PK_TENSOR,
       {"two tensors"}},
  };
}

TEST(PickleFile, WhatIsWrongIsOneError) {
  EXPECT_FALSE(error_in(file_of(state_dict_of("x", 12, {3, 4}))));
  for (const Wrong& wrong : wrong_files()) {
    SCOPED_TRACE(wrong.what);
    expect_error(error_in(wrong.image), wrong.code, wrong.words);
  }
}

// A list within a list within a list ... and a dictionary that holds itself: nothing follows them down.
TEST(PickleFile, NestingTakesNoStack) {
  std::string deep = "\x80\x02";
  for (int i = 0; i < 200000; ++i) deep += ']';
  for (int i = 1; i < 200000; ++i) deep += 'a';
  EXPECT_TRUE(error_in(file_of(deep + ".")));
  EXPECT_TRUE(
      error_in(file_of("\x80\x02}q" + std::string(1, '\0') + text_of("x") + "h" + std::string(1, '\0') + "s.")));
}

TEST(PickleSweep, EveryTruncationIsAnError) {
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".bin") continue;
    const std::string bytes = read_text(entry.path().string());
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      ASSERT_EQ(check_pickle(bytes.substr(0, length)), "") << entry.path() << " cut at " << length;
      ASSERT_TRUE(error_in(bytes.substr(0, length))) << entry.path() << " cut at " << length;
    }
  }
}

TEST(PickleSweep, EveryChangedByteIsNoticedOrHarmless) {
  // The pickle itself, under a checksum that is right, and a whole file.
  const std::string pickle = state_dict_of("x", 12, {3, 4}), file = read_text((kFolder / "shared.bin").string());
  const auto sweep = [](std::string bytes, const auto& image_of) {
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      const char before = bytes[at];
      for (int value = 0; value < 256; ++value) {
        bytes[at] = static_cast<char>(value);
        ASSERT_EQ(check_pickle(image_of(bytes)), "") << "byte " << at << " = " << value;
      }
      bytes[at] = before;
    }
  };
  sweep(pickle, [](const std::string& bytes) { return file_of(bytes); });
  sweep(file, [](const std::string& bytes) { return bytes; });
}

TEST(PickleFile, AFileThatChangesIsNoticed) {
  const safetensors::TestFolder folder;
  const fs::path path = fs::path(folder.path()) / "adapter_model.bin";
  fs::copy_file(kFolder / "plain.bin", path);
  const auto file = PickleFile::open(path.string());
  std::ofstream(path, std::ios::app) << "more";
  expect_error(error_of([&] { file->check_unchanged(); }), ErrorCode::IO_CHANGED, {});
}

}  // namespace
}  // namespace peft::pickle
