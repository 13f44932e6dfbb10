// Rows of training data that have text: their keys are checked, and the tokenizer makes token ids of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "peft/train/data.h"
#include "tokenizer/tokenizer.h"

namespace peft {

class TextRows {
 public:
  struct Options {
    bool completion_only_loss = true, assistant_only_loss = false;
  };
  TextRows(std::string folder, Options options) : folder_(std::move(folder)), options_(options) {}

  // Throws DT_ROW, without a place, and RT_TOKENIZER. The tokenizer is started by the first row.
  train::Row row(std::string_view json_line);
  // Rows of prompt and completion whose prompt has other ids alone: learning begins where both part.
  std::int64_t guessed() const { return guessed_; }

 private:
  std::string folder_;
  Options options_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::int64_t guessed_ = 0;
};

}  // namespace peft
