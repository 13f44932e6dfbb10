#include "safetensors/reading/input_file.h"

#include <gtest/gtest.h>

#include "support/test_files.h"

namespace peft::safetensors {
namespace {

TEST(InputFile, OnlyRegularFilesAreRead) {
  const auto code_of = [](const std::string& path) {
    try {
      read_text_file(path);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::INTERNAL;
  };
  EXPECT_EQ(code_of("/nowhere/adapter_config.json"), ErrorCode::CF_FORM);
  EXPECT_EQ(code_of("/tmp"), ErrorCode::IO_KIND);
  EXPECT_EQ(code_of("/dev/zero"), ErrorCode::IO_KIND);
}

TEST(InputFile, TextsAreReadWhole) {
  const TestFolder folder;
  EXPECT_EQ(read_text_file(folder.write("a.json", "{}\n")), "{}\n");
  EXPECT_EQ(read_text_file(folder.write("b.json", "")), "");
  const std::string pointer = folder.write("c.json", "version https://git-lfs.github.com/spec/v1\n");
  expect_error(error_of([&] { read_text_file(pointer, ErrorCode::MD_FORM); }), ErrorCode::MD_FORM, {"Git LFS pointer"});
}

}  // namespace
}  // namespace peft::safetensors
