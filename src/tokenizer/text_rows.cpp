#include "tokenizer/text_rows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "peft/error.h"
#include "pythonic/python_json.h"

namespace peft {
namespace {

using pythonic::Json;

[[noreturn]] void fail(const std::string& key, ErrorReason reason) {
  at({}, key).fail(ErrorCode::DT_ROW, std::move(reason));
}

// The forms of a row with text: the keys that make it one, and those it may have.
struct Form {
  std::vector<std::string> needed, allowed;
};
const std::vector<Form>& forms() {
  static const std::vector<Form> all = {
      {{"messages"}, {"tools", "chat_template_kwargs"}},
      {{"prompt", "completion"}, {"tools", "chat_template_kwargs"}},
      {{"text"}, {}},
  };
  return all;
}

bool has(const std::vector<std::string>& list, const std::string& key) {
  return std::ranges::find(list, key) != list.end();
}

const Form& form_of(const Json& row) {
  for (const Form& form : forms()) {
    if (std::ranges::all_of(form.needed, [&](const std::string& key) { return row.contains(key); })) return form;
  }
  std::vector<std::string> keys;
  for (const auto& [key, value] : row.items()) keys.push_back(printable(key, 40));
  fail("", {.problem = "not a row of training data",
            .expected = "input_ids, text, messages, or prompt and completion",
            .got = keys.empty() ? "an empty object" : fmt::format("{}", fmt::join(keys, ", "))});
}

void require_messages(const Json& list, const std::string& key) {
  const bool fine = list.is_array() && !list.empty() && std::ranges::all_of(list, [](const Json& message) {
                      return message.is_object() && message.contains("role");
                    });
  if (!fine) fail(key, {.problem = "not a list of messages", .expected = R"([{"role": ..., "content": ...}, ...])"});
}

void check(const Json& row) {
  const Form& form = form_of(row);
  for (const auto& [key, value] : row.items()) {
    if (has(form.needed, key) || has(form.allowed, key)) continue;
    fail(key, {.problem = "a key that a row of this kind does not have",
               .expected = fmt::format("{}", fmt::join(form.needed, ", ")),
               .got = printable(key)});
  }
  if (row.contains("text") && !row["text"].is_string()) fail("text", {.problem = "not a text", .expected = "a string"});
  if (row.contains("messages")) require_messages(row["messages"], "messages");
  if (!row.contains("prompt")) return;
  if (row["prompt"].is_string() && row["completion"].is_string()) return;
  require_messages(row["prompt"], "prompt");
  require_messages(row["completion"], "completion");
}

}  // namespace

train::Row TextRows::row(std::string_view json_line) {
  check(pythonic::parse_json(json_line, "", ErrorCode::DT_ROW));
  if (!tokenizer_) tokenizer_ = std::make_unique<Tokenizer>(folder_);
  const TrainingText text =
      tokenizer_->training_text(json_line, options_.completion_only_loss, options_.assistant_only_loss);
  if (!text.prompt_begins) ++guessed_;
  train::Row row;
  row.ids.assign(text.ids.begin(), text.ids.end());
  if (row.ids.empty()) fail("", {.problem = "the row has no token"});
  for (std::size_t i = 0; i < row.ids.size(); ++i)
    row.labels.push_back(text.learnt[i] != 0 ? row.ids[i] : train::kIgnored);
  return row;
}

}  // namespace peft
