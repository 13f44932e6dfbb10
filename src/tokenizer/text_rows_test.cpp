#include "tokenizer/text_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "peft/error.h"
#include "support/golden.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using ::testing::Each;
using ::testing::HasSubstr;

// The shape of Qwen's template, with the assistant's turns marked.
constexpr const char* kTemplate =
    "{%- if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

class Rows : public ::testing::Test {
 protected:
  Rows() {
    fs::copy_file(testing::golden_root() / "tokenizer/qwen/tokenizer.json", folder_ / "tokenizer.json");
    testing::write_file(folder_ / "chat_template.jinja", kTemplate);
    testing::write_file(folder_ / "tokenizer_config.json", R"({"eos_token": {"content": "<|im_end|>"}})");
  }
  TextRows rows(TextRows::Options options = {}) const { return {folder_.path().string(), options}; }
  std::vector<std::int64_t> ids(std::string_view text) const { return Tokenizer(folder_.path().string()).encode(text); }
  // The text of the tokens that are learnt.
  std::string learnt(const train::Row& row) const {
    std::vector<std::int64_t> kept;
    for (const std::int32_t label : row.labels)
      if (label != train::kIgnored) kept.push_back(label);
    return Tokenizer(folder_.path().string()).decode(kept, false);
  }
  std::string error(std::string_view line, TextRows::Options options = {}) const {
    try {
      TextRows(folder_.path().string(), options).row(line);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::DT_ROW);
      return e.what();
    }
    return "no error";
  }
  testing::TemporaryFolder folder_;
};

std::vector<std::int64_t> wide(const std::vector<std::int32_t>& ids) { return {ids.begin(), ids.end()}; }

TEST_F(Rows, text_is_learnt_with_its_end) {
  const auto row = rows().row(R"({"text": "hello world"})");
  EXPECT_EQ(wide(row.ids), ids("hello world<|im_end|>"));
  EXPECT_EQ(row.labels, row.ids);
  EXPECT_EQ(rows().row(R"({"text": "a<|im_end|>"})").ids.size(), ids("a<|im_end|>").size());
}

TEST_F(Rows, of_prompt_and_completion_the_completion_is_learnt) {
  const char* line = R"({"prompt": "a b c", "completion": " d e"})";
  EXPECT_EQ(learnt(rows().row(line)), " d e<|im_end|>");
  EXPECT_EQ(learnt(rows({.completion_only_loss = false}).row(line)), "a b c d e<|im_end|>");
  const auto chat = rows().row(
      R"({"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]})");
  EXPECT_EQ(learnt(chat), "4<|im_end|>\n");
}

// " the" is one token: the prompt's last one, a space, is not in the row. TRL learns from there on.
TEST_F(Rows, a_completion_begins_where_the_prompt_alone_has_other_tokens) {
  TextRows text = rows();
  const auto row = text.row(R"({"prompt": "a b ", "completion": "the d"})");
  EXPECT_EQ(wide(row.ids), ids("a b the d<|im_end|>"));
  EXPECT_EQ(learnt(row), " the d<|im_end|>");
  EXPECT_EQ(text.guessed(), 1);
}

TEST_F(Rows, messages_go_through_the_chat_template) {
  const std::string line =
      R"({"messages": [{"role": "user", "content": "Hi \u00e9"}, {"role": "assistant", "content": "caf\u00e9"},)"
      R"( {"role": "user", "content": "x"}, {"role": "assistant", "content": "y z"}], "tools": [{"name": "f"}]})";
  const auto row = rows().row(line);
  EXPECT_EQ(wide(row.ids),
            ids("TOOLS [{\"name\": \"f\"}]\n<|im_start|>user\nHi é<|im_end|>\n<|im_start|>assistant\n"
                "café<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny z<|im_end|>\n"));
  EXPECT_EQ(row.labels, row.ids);
  EXPECT_EQ(learnt(rows({.assistant_only_loss = true}).row(line)), "café<|im_end|>\ny z<|im_end|>\n");
  const auto none = rows({.assistant_only_loss = true}).row(R"({"messages": [{"role": "user", "content": "only"}]})");
  EXPECT_THAT(none.labels, Each(train::kIgnored));
}

TEST_F(Rows, what_cannot_be_a_row_is_said) {
  EXPECT_THAT(error(R"({"txt": "a"})"), HasSubstr("txt"));
  EXPECT_THAT(error(R"({"text": 1})"), HasSubstr("not a text"));
  EXPECT_THAT(error(R"({"text": "a", "id": 7})"), HasSubstr("id"));
  EXPECT_THAT(error(R"({"messages": []})"), HasSubstr("not a list of messages"));
  EXPECT_THAT(error(R"({"prompt": "a", "completion": []})"), HasSubstr("prompt"));
  EXPECT_THAT(error(R"({"text": "a"})", {.assistant_only_loss = true}), HasSubstr("generation"));
  testing::write_file(folder_ / "chat_template.jinja", "{{ raise_exception('no tools here') }}");
  EXPECT_THAT(error(R"({"messages": [{"role": "user", "content": "a"}]})"), HasSubstr("no tools here"));
  fs::remove(folder_ / "chat_template.jinja");
  EXPECT_THAT(error(R"({"messages": [{"role": "user", "content": "a"}]})"), HasSubstr("chat_template.jinja"));
}

}  // namespace
}  // namespace peft
