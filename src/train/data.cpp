#include "peft/train/data.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "base/text.h"
#include "peft/error.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"

namespace peft::train {
namespace {

using pythonic::Json;

constexpr std::size_t kMaxLine = std::size_t{64} << 20;  // bytes: a longer line is no row but another kind of file

// Lines of a file, one at a time, in blocks. The hash is that of all bytes.
class Lines {
 public:
  explicit Lines(const std::string& path) : file_(path), state_(XXH3_createState()), block_(std::size_t{1} << 20) {
    XXH3_128bits_reset(state_);
  }
  ~Lines() { XXH3_freeState(state_); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  // Without its line feed. False at the end.
  bool next(std::string& line) {
    line.clear();
    ++number_;
    for (bool some = false;;) {
      if (at_ == filled_ && !fill()) return some;
      some = true;
      const auto begin = block_.begin() + static_cast<std::ptrdiff_t>(at_),
                 end = block_.begin() + static_cast<std::ptrdiff_t>(filled_);
      const auto feed = std::find(begin, end, '\n');
      line.append(begin, feed);
      at_ += static_cast<std::size_t>(feed - begin);
      if (line.size() > kMaxLine) {
        at(place()).fail(ErrorCode::DT_ROW, {.problem = "the line is too long for a row of training data",
                                             .expected = fmt::format("at most {} bytes", kMaxLine),
                                             .got = "more"});
      }
      if (feed == end) continue;
      ++at_;  // the line feed
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return true;
    }
  }
  std::string place() const { return fmt::format("{}:{}", file_.path(), number_); }
  std::string hash() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  bool fill() {
    const std::uint64_t left = file_.size() - offset_;
    if (left == 0) return false;
    filled_ = static_cast<std::size_t>(std::min<std::uint64_t>(left, block_.size()));
    file_.read(offset_, std::span(block_).first(filled_));
    XXH3_128bits_update(state_, block_.data(), filled_);
    offset_ += filled_, at_ = 0;
    return true;
  }

  safetensors::InputFile file_;
  XXH3_state_t* state_;
  std::vector<char> block_;
  std::size_t at_ = 0, filled_ = 0;
  std::uint64_t offset_ = 0;
  std::size_t number_ = 0;
};

class Reader {
 public:
  Reader(const DataOptions& options, const std::string& place) : options_(options), place_(place) {}

  Row read(const std::string& line) const {
    const Json json = pythonic::parse_json(line, place_, ErrorCode::DT_ROW);
    if (!json.is_object()) fail("", "a row is a JSON object", "{\"input_ids\": [...]}", json.type_name());
    Row row;
    if (json.contains("input_ids")) {
      row = from_ids(json);
    } else if (options_.encode) {
      row = encoded(line);
    } else {
      fail("", "the row has no token ids, and there is no tokenizer to make some", "input_ids", keys_of(json));
    }
    require_in_vocabulary(row);
    return row;
  }

 private:
  [[noreturn]] void fail(const std::string& key, std::string problem, std::string expected, std::string got) const {
    at(place_, key)
        .fail(ErrorCode::DT_ROW,
              {.problem = std::move(problem), .expected = std::move(expected), .got = std::move(got)});
  }

  // What is wrong with the row gets its place here.
  Row encoded(const std::string& line) const {
    try {
      return options_.encode(line);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::DT_ROW) throw;
      const ErrorDetail& what = error.detail();
      at(place_, what.tensor)
          .fail(ErrorCode::DT_ROW,
                {.problem = what.problem, .expected = what.expected, .got = what.got, .hint = what.hint});
    }
  }

  static std::string keys_of(const Json& json) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.items()) keys.push_back(key);
    return keys.empty() ? "an empty object" : "the keys " + list_text(keys, 8, " and {} more");
  }

  Row from_ids(const Json& json) const {
    static const std::set<std::string> known = {"input_ids", "labels", "attention_mask"};
    for (const auto& [key, value] : json.items()) {
      if (!known.contains(key))
        fail(key, "a key that a row of token ids does not have", "input_ids, labels, attention_mask", key);
    }
    Row row;
    row.ids = numbers(json, "input_ids", 0, std::nullopt);
    if (row.ids.empty()) fail("input_ids", "the row has no token", "one token id or more", "none");
    if (json.contains("attention_mask")) {
      for (const std::int32_t value : numbers(json, "attention_mask", 0, row.ids.size())) {
        if (value > 1) fail("attention_mask", "a number other than 0 and 1", "0 or 1", std::to_string(value));
        row.mask.push_back(static_cast<std::uint8_t>(value));
      }
      if (std::ranges::all_of(row.mask, [](auto value) { return value == 1; })) row.mask.clear();
    }
    row.labels = json.contains("labels") ? numbers(json, "labels", kIgnored, row.ids.size()) : row.ids;
    for (std::size_t i = 0; i < row.mask.size() && !json.contains("labels"); ++i) {
      if (row.mask[i] == 0) row.labels[i] = kIgnored;
    }
    return row;
  }

  std::vector<std::int32_t> numbers(const Json& json, const char* key, std::int64_t least,
                                    std::optional<std::size_t> count) const {
    const Json& list = json.at(key);
    if (!list.is_array()) fail(key, "not a list of numbers", "[1, 2, ...]", list.type_name());
    if (count && list.size() != *count) {
      fail(key, "another length than input_ids", std::to_string(*count), std::to_string(list.size()));
    }
    std::vector<std::int32_t> result;
    result.reserve(list.size());
    for (const Json& value : list) {
      const bool whole = value.is_number_integer() || value.is_number_unsigned();
      const auto number = whole ? value.get<std::int64_t>() : 0;
      if (!whole || number < least || number > INT32_MAX || (number < 0 && number != kIgnored)) {
        fail(fmt::format("{}[{}]", key, result.size()), "not a token id",
             least < 0 ? "-100, or a number from 0 on" : "a number from 0 on", value.dump());
      }
      result.push_back(static_cast<std::int32_t>(number));
    }
    return result;
  }

  void require_in_vocabulary(const Row& row) const {
    if (options_.vocabulary == 0) return;
    for (const auto& [key, list] : {std::pair{"input_ids", &row.ids}, std::pair{"labels", &row.labels}}) {
      const auto wrong = std::ranges::find_if(*list, [&](std::int32_t id) { return id >= options_.vocabulary; });
      if (wrong == list->end()) continue;
      fail(fmt::format("{}[{}]", key, wrong - list->begin()), "a token id outside the vocabulary",
           fmt::format("0 to {}", options_.vocabulary - 1), std::to_string(*wrong));
    }
  }

  const DataOptions& options_;
  const std::string& place_;
};

void cut(Row& row, std::int64_t length) {
  const auto size = static_cast<std::size_t>(length);
  row.ids.resize(size), row.labels.resize(size);
  if (!row.mask.empty()) row.mask.resize(size);
}

// Without padding.
Row dense(const Row& row) {
  if (row.mask.empty()) return row;
  Row result;
  for (std::size_t i = 0; i < row.ids.size(); ++i) {
    if (row.mask[i] == 0) continue;
    result.ids.push_back(row.ids[i]), result.labels.push_back(row.labels[i]);
  }
  return result;
}

}  // namespace

std::int64_t Row::predicted() const {
  std::int64_t count = 0;
  for (std::size_t i = 1; i < labels.size(); ++i) count += labels[i] != kIgnored ? 1 : 0;
  std::int64_t start = 0;
  for (const std::int64_t length : documents) {
    if (start > 0 && labels[static_cast<std::size_t>(start)] != kIgnored) --count;
    start += length;
  }
  return count;
}

Dataset read_dataset(const std::string& file, const DataOptions& options) {
  Dataset data;
  data.file = file;
  Lines lines(file);
  std::string line;
  while (lines.next(line)) {
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string place = lines.place();
    Row row = Reader(options, place).read(line);
    if (options.max_length > 0 && row.tokens() > options.max_length) {
      cut(row, options.max_length);
      ++data.cut;
    }
    if (options.model_length > 0 && row.tokens() > options.model_length) {
      at(place).fail(ErrorCode::DT_ROW, {.problem = "the row is longer than the model's positions",
                                         .expected = fmt::format("at most {} tokens", options.model_length),
                                         .got = std::to_string(row.tokens()),
                                         .hint = "--max-length cuts rows"});
    }
    if (row.predicted() == 0) {
      ++data.without;
      continue;
    }
    data.rows.push_back(std::move(row));
  }
  data.hash = lines.hash();
  if (data.rows.empty()) {
    at(file).fail(ErrorCode::DT_ROW,
                  {.problem = data.without == 0 ? "the file has no rows" : "nothing is learnt in any row",
                   .expected = "a JSON object a line, with two tokens or more",
                   .got = data.without == 0 ? "none" : fmt::format("{} rows without labels", data.without)});
  }
  return data;
}

Dataset packed(const Dataset& data, std::int64_t length) {
  Dataset result = data;
  result.rows.clear();
  result.bins = static_cast<std::int64_t>(data.rows.size());
  std::vector<Row> rows;
  for (const Row& row : data.rows) rows.push_back(dense(row));
  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return rows[a].tokens() > rows[b].tokens(); });
  std::map<std::int64_t, std::set<std::size_t>> by_room;  // room left: bins that have it
  for (const std::size_t index : order) {
    const Row& row = rows[index];
    std::size_t bin = result.rows.size();
    const auto fullest = by_room.lower_bound(row.tokens());
    if (fullest == by_room.end()) {
      result.rows.emplace_back();
    } else {
      bin = *fullest->second.begin();
      fullest->second.erase(fullest->second.begin());
      if (fullest->second.empty()) by_room.erase(fullest);
    }
    Row& to = result.rows[bin];
    to.ids.insert(to.ids.end(), row.ids.begin(), row.ids.end());
    to.labels.insert(to.labels.end(), row.labels.begin(), row.labels.end());
    to.documents.push_back(row.tokens());
    by_room[length - to.tokens()].insert(bin);
  }
  return result;
}

}  // namespace peft::train
