// Token ids of rows with text, kept beside the output, so that a run that goes on needs no tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "peft/train/data.h"
#include "tokenizer/text_rows.h"

namespace peft::torch_cli {

class TokenCache {
 public:
  // OUT/tokens-HASH.safetensors: the hash is of the data's bytes, of the base's tokenizer files and of the options. A
  // file that is there is taken; one that is damaged is as none.
  TokenCache(const std::string& out, const std::string& data, const std::string& base,
             const TextRows::Options& options);

  // The rows in their order: from the file, or from `text`, which is asked for those that it has not. Throws as
  // TextRows::row().
  train::Row row(std::string_view json_line, TextRows& text);
  std::int64_t guessed() const { return guessed_; }
  // Writes what was made anew. Nothing where no row had text, or the file was there. Throws IO_WRITE.
  void save() const;

 private:
  void read();

  std::string path_;
  std::vector<std::int32_t> ids_, labels_;
  std::vector<std::int64_t> ends_;  // of each row in ids_
  std::int64_t guessed_ = 0;        // TextRows::guessed() of all rows
  std::size_t next_ = 0;
  bool is_there_ = false;
};

}  // namespace peft::torch_cli
