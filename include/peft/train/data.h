// Training data: rows of token ids from a JSON-lines file. Needs no tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace peft::train {

inline constexpr std::int32_t kIgnored = -100;  // a label that is not learnt

struct Row {
  std::vector<std::int32_t> ids, labels;  // of equal length; labels are not shifted: labels[t] stands beside ids[t]
  std::vector<std::uint8_t> mask{};       // 1 real, 0 padding; empty: all real
  std::vector<std::int64_t> documents{};  // a packed row: lengths of what is in it
  std::int64_t tokens() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t predicted() const;  // tokens that are learnt: the first of a document is not
};

struct Dataset {
  std::string file;    // where it came from, for messages
  std::string hash{};  // of its bytes
  std::vector<Row> rows{};
  std::int64_t cut = 0;      // rows that were longer than max_length
  std::int64_t without = 0;  // rows that were left out because nothing in them is learnt
  std::int64_t bins = 0;     // packing: rows before; 0: not packed
};

struct DataOptions {
  std::int64_t vocabulary = 0;    // ids are below it; 0: not checked
  std::int64_t max_length = 0;    // longer rows are cut at the end; 0: never
  std::int64_t model_length = 0;  // of config.json: a row that is still longer is an error; 0: not known
  // Makes a row of a line that has text and not token ids. Without it such a line is an error.
  std::function<Row(std::string_view json_line)> encode{};
};

// A JSON object a line: {"input_ids": [...], "labels"?: [...], "attention_mask"?: [...]}, or what `encode` takes.
// Without labels all tokens of the mask are learnt. Throws DT_ROW with the line and what is wrong.
Dataset read_dataset(const std::string& file, const DataOptions& options);

// Rows of at most `length` tokens made of whole rows, best fit decreasing: the longest first, each into the fullest row
// that has room. Padding is left out.
Dataset packed(const Dataset& data, std::int64_t length);

}  // namespace peft::train
