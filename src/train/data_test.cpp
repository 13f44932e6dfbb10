#include "peft/train/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "peft/error.h"
#include "peft/train/batches.h"

namespace peft::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Data : public testing::Test {
 protected:
  Data() : file_((std::filesystem::temp_directory_path() / ("peft-data-" + std::to_string(getpid()))).string()) {}
  ~Data() override { std::filesystem::remove(file_); }
  Dataset read(const std::string& text, const DataOptions& options = {.vocabulary = 100}) {
    std::ofstream(file_) << text;
    return read_dataset(file_, options);
  }
  std::string error(const std::string& text, const DataOptions& options = {.vocabulary = 100}) {
    try {
      read(text, options);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::DT_ROW);
      return e.what();
    }
    return "no error";
  }
  std::string file_;
};

TEST_F(Data, rows_of_token_ids_are_taken_as_they_are) {
  const auto data = read(
      "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3]}\r\n\n"
      "{\"input_ids\": [4, 5, 0], \"attention_mask\": [1, 1, 0]}");
  ASSERT_EQ(data.rows.size(), 2U);
  EXPECT_THAT(data.rows[0].labels, ElementsAre(-100, 2, 3));
  EXPECT_TRUE(data.rows[0].mask.empty());
  EXPECT_THAT(data.rows[1].labels, ElementsAre(4, 5, -100));
  EXPECT_THAT(data.rows[1].mask, ElementsAre(1, 1, 0));
  EXPECT_EQ(data.rows[0].predicted(), 2);
  EXPECT_EQ(data.rows[1].predicted(), 1);
  EXPECT_EQ(data.hash.size(), 32U);
}

TEST_F(Data, long_rows_are_cut_and_rows_without_labels_left_out_and_both_counted) {
  const auto data = read(
      "{\"input_ids\": [1, 2, 3, 4]}\n{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n{\"input_ids\": [7]}\n",
      {.vocabulary = 100, .max_length = 2});
  ASSERT_EQ(data.rows.size(), 1U);
  EXPECT_THAT(data.rows[0].ids, ElementsAre(1, 2));
  EXPECT_EQ(data.cut, 2);
  EXPECT_EQ(data.without, 2);
}

TEST_F(Data, bad_lines_are_named_with_their_place) {
  EXPECT_THAT(error(""), HasSubstr("no rows"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2\n"), HasSubstr(file_ + ":2"));
  EXPECT_THAT(error("{\"input_ids\": [1, 100]}"), HasSubstr("input_ids[1]\": a token id outside the vocabulary"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2], \"label\": [1, 2]}"), HasSubstr("label"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2], \"labels\": [1]}"), HasSubstr("another length"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2.5]}"), HasSubstr("input_ids[1]\": not a token id"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2], \"labels\": [1, -1]}"), HasSubstr("labels[1]"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2], \"attention_mask\": [1, 2]}"), HasSubstr("0 and 1"));
  EXPECT_THAT(error("{\"text\": \"x\"}"), HasSubstr("no tokenizer"));
  EXPECT_THAT(error("[1, 2]"), HasSubstr("a row is a JSON object"));
  EXPECT_THAT(error("{\"input_ids\": [1, 2, 3]}", {.vocabulary = 9, .model_length = 2}), HasSubstr("positions"));
}

TEST_F(Data, rows_are_packed_best_fit_decreasing) {
  Dataset data;
  for (const std::int32_t length : {3, 6, 5, 2, 4}) {
    Row row;
    row.ids.assign(static_cast<std::size_t>(length), length), row.labels = row.ids;
    data.rows.push_back(row);
  }
  const auto all = packed(data, 10);
  ASSERT_EQ(all.rows.size(), 2U);
  EXPECT_THAT(all.rows[0].documents, ElementsAre(6, 4));
  EXPECT_THAT(all.rows[1].documents, ElementsAre(5, 3, 2));
  EXPECT_EQ(all.rows[1].predicted(), 4 + 2 + 1);
  EXPECT_EQ(all.bins, 5);
}

TEST(Batches, go_through_the_rows_in_the_order_of_the_file_and_start_over) {
  Dataset data;
  for (std::int32_t i = 0; i < 5; ++i) {
    Row row;
    row.ids = {i, i, i}, row.labels = row.ids;
    data.rows.push_back(row);
  }
  Options options;
  options.per_device_train_batch_size = 2, options.gradient_accumulation_steps = 2, options.shuffle = false;
  Batches batches(data, options);
  EXPECT_EQ(batches.steps_per_epoch(), 2);
  EXPECT_EQ(batches.total_steps(), 6);
  EXPECT_EQ(batches.epoch_of(3), 1.5);
  ASSERT_EQ(batches.of_step(0).size(), 2U);
  const auto last = batches.of_step(1);
  ASSERT_EQ(last.size(), 1U);
  EXPECT_THAT(last[0].ids, ElementsAre(4, 4, 4));
  EXPECT_THAT(batches.of_step(2)[1].ids, ElementsAre(2, 2, 2, 3, 3, 3));
}

TEST(Batches, every_epoch_has_every_row_in_an_order_of_its_own) {
  const auto first = shuffled(100, 42, 0), second = shuffled(100, 42, 1);
  EXPECT_NE(first, second);
  EXPECT_EQ(first, shuffled(100, 42, 0));
  auto sorted = first;
  std::ranges::sort(sorted);
  for (std::size_t i = 0; i < sorted.size(); ++i) EXPECT_EQ(sorted[i], i);
}

TEST(Batches, shorter_rows_are_filled_up_on_the_right) {
  Row a, b;
  a.ids = {1, 2, 3}, a.labels = {-100, 2, 3}, b.ids = {4, 5}, b.labels = {4, 5};
  const auto batch = collate({&a, &b});
  EXPECT_THAT(batch.ids, ElementsAre(1, 2, 3, 4, 5, 0));
  EXPECT_THAT(batch.labels, ElementsAre(-100, 2, 3, 4, 5, -100));
  EXPECT_THAT(batch.mask, ElementsAre(1, 1, 1, 1, 1, 0));
  EXPECT_EQ(batch.predicted, 3);
  EXPECT_EQ(batch.real, 5);
  EXPECT_TRUE(collate({&a}).mask.empty());
}

}  // namespace
}  // namespace peft::train
