// Text to token ids and back, by a tokenizer.json. The `tokenizers` package of Hugging Face does it in a Python
// process, so that the ids are those of the programs that trained the model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace peft {

// A row of training data as token ids.
struct TrainingText {
  std::vector<std::int64_t> ids;
  std::vector<std::uint8_t> learnt;  // 1: learnt
  bool prompt_begins = true;         // the prompt's own ids are the first ones; else learning begins where both part
};

class Tokenizer {
 public:
  // `folder` has a tokenizer.json. Python is $PEFT_PYTHON when set, else the one peft was built with, else python3.
  // Throws RT_TOKENIZER, naming what is missing.
  explicit Tokenizer(const std::string& folder);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;

  std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens = true);
  std::string decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens);
  // {"text"}, {"prompt", "completion"} or {"messages", "tools"}, as TRL makes token ids of them, with the chat template
  // of the folder. Throws DT_ROW, without a place, for a row that cannot be one.
  TrainingText training_text(std::string_view json_row, bool completion_only, bool assistant_only);

 private:
  struct Process;
  std::unique_ptr<Process> process_;
};

// The text of a growing list of ids, piece by piece: what is not complete yet (half a character) is held back until it
// is.
class TextStream {
 public:
  explicit TextStream(Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string add(std::int64_t id);                  // what can be printed now; may be empty
  std::string finish();                              // what was held back
  const std::string& text() const { return text_; }  // all of it, as the tokenizer decodes the whole list

 private:
  std::string rest_after(std::size_t end);
  Tokenizer& tokenizer_;
  std::vector<std::int64_t> ids_;
  std::string text_;
  std::size_t printed_ = 0;  // bytes of text_ that were given out
};

}  // namespace peft
