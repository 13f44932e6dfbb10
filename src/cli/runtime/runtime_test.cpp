#include "cli/runtime/runtime.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::cli {
namespace {

std::string problem_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::USAGE);
    return error.what();
  }
  return "no error";
}

TEST(TokenIds, rows_are_split_at_semicolons) {
  EXPECT_EQ(parse_ids("1,2,3;4,5,6"), (Rows{{1, 2, 3}, {4, 5, 6}}));
  EXPECT_EQ(parse_ids(" 0 , 248319 "), (Rows{{0, 248319}}));
}

TEST(TokenIds, what_is_no_number_is_named_with_its_place) {
  for (const char* text : {"", "1,,2", "1,-2", "1;x", "1,2;", "1.5", "99999999999999999999", "1 2", "+1", "0x1"}) {
    EXPECT_THAT(problem_of([&] { parse_ids(text); }), testing::HasSubstr("is not a token id")) << text;
  }
  EXPECT_THAT(problem_of([] { parse_ids("1,2;3,b"); }), testing::HasSubstr("row 2, place 2"));
}

TEST(TokenIds, rows_must_be_equally_long) {
  EXPECT_THAT(problem_of([] { parse_ids("1,2;3"); }), testing::HasSubstr("row 2 is not as long as row 1"));
}

TEST(TokenIds, a_mask_fits_the_ids) {
  const Rows ids = parse_ids("1,2,3;4,5,6");
  EXPECT_TRUE(parse_mask("", ids).empty());
  EXPECT_EQ(parse_mask("1,1,1;0,1,1", ids), (Rows{{1, 1, 1}, {0, 1, 1}}));
  EXPECT_THAT(problem_of([&] { parse_mask("1,1,1", ids); }), testing::HasSubstr("shape of --ids"));
  EXPECT_THAT(problem_of([&] { parse_mask("1,1,1;1,2,1", ids); }), testing::HasSubstr("another number than 0 and 1"));
  EXPECT_THAT(problem_of([&] { parse_mask("1,1,1;0,0,0", ids); }), testing::HasSubstr("row 2 has no token"));
}

TEST(TokenIds, generation_wants_padding_on_the_left) {
  require_left_padding({{1, 1, 1}, {0, 1, 1}});
  require_left_padding({});
  EXPECT_THAT(problem_of([] { require_left_padding({{1, 1, 1}, {1, 1, 0}}); }), testing::HasSubstr("row 2"));
  EXPECT_THAT(problem_of([] { require_left_padding({{1, 0, 1}}); }), testing::HasSubstr("row 1"));
}

}  // namespace
}  // namespace peft::cli
