#include "config/python_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "base/text.h"

namespace peft::config {
namespace {

constexpr std::uint8_t kRawNumber = 1;  // subtype of the binary value that stands for a long integer

[[noreturn]] void fail(ErrorCode code, const std::string& file, const std::string& key, std::string problem,
                       std::string hint = {}) {
  ErrorDetail detail;
  detail.file = file;
  detail.tensor = key;
  detail.problem = std::move(problem);
  detail.hint = std::move(hint);
  throw Error(code, std::move(detail));
}

std::string place(std::string_view text, std::size_t byte) {
  byte = std::min(byte, text.size());
  const std::string_view before = text.substr(0, byte);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == before.npos ? byte + 1 : byte - newline;
  return fmt::format("byte {} (line {}, column {})", byte, line, column);
}

void check_encoding(std::string_view text, const std::string& file, ErrorCode code) {
  if (text.size() > kMaxJsonBytes) {
    fail(code, file, {}, fmt::format("{} bytes are more than the {} a config may have", text.size(), kMaxJsonBytes));
  }
  const std::string hint = "save the file as UTF-8 without a byte order mark";
  if (text.starts_with("\xEF\xBB\xBF")) fail(code, file, {}, "starts with a byte order mark (BOM) at byte 0", hint);
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    fail(code, file, {}, "starts with a UTF-16 byte order mark (BOM) at byte 0", hint);
  }
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    fail(code, file, {}, "not valid UTF-8 at " + place(text, bad), hint);
  }
}

// Builds the value and checks what nlohmann leaves open.
class Builder : public nlohmann::json_sax<Json> {
 public:
  using Code = ErrorCode (*)(std::string_view);
  Builder(std::string_view text, const std::string& file, ErrorCode code, Code code_for_number)
      : text_(text), file_(file), code_(code), code_for_number_(code_for_number) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& written) override {
    if (written.find_first_of(".eE") != std::string::npos) return add(value);
    return add(Json::binary({written.begin(), written.end()}, kRawNumber));
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return true; }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    level.key = name;
    if (!level.seen.insert(name).second) fail(code_, file_, path(), "the key appears twice in one object");
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token, const nlohmann::detail::exception& error) override {
    constexpr int kOverflow = 406;  // nlohmann's number for it
    if (error.id == kOverflow) refuse_number(position - token.size(), token, " is beyond double precision");
    refuse_literal(position);
    std::string reason = error.what();
    if (const std::size_t colon = reason.find(": "); colon != reason.npos) reason.erase(0, colon + 2);
    fail(code_, file_, path(), "not JSON at " + place(text_, position == 0 ? 0 : position - 1) + ": " + reason);
  }

 private:
  struct Level {
    Json* container;
    std::string key;
    std::unordered_set<std::string> seen;
  };

  // Not Json's own insertion, which looks for the key first: quadratic in a file that wants to be.
  Json* place_value(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& container = *levels_.back().container;
    if (container.is_array()) {
      auto& array = container.get_ref<Json::array_t&>();
      return &array.emplace_back(std::move(value));
    }
    auto& object = container.get_ref<Json::object_t&>();
    return &object.emplace_back(levels_.back().key, std::move(value)).second;
  }

  bool add(Json value) {
    place_value(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (levels_.size() >= kMaxJsonDepth) {
      fail(code_, file_, path(), fmt::format("nested more than {} levels deep", kMaxJsonDepth));
    }
    levels_.push_back({place_value(std::move(value)), {}, {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  // "alpha_pattern.q_proj"
  std::string path() const {
    std::string text;
    for (const Level& level : levels_) {
      if (!level.key.empty()) text += (text.empty() ? "" : ".") + level.key;
    }
    return text;
  }

  // Names a literal that Python accepts and JSON does not. `stop` is behind the character at which reading stopped.
  void refuse_literal(std::size_t stop) const {
    for (const std::string_view literal : {"-Infinity", "Infinity", "NaN"}) {
      // Reading stops at the first character, or at the second of -Infinity.
      for (const std::size_t length : {1, 2}) {
        if (stop >= length && text_.substr(stop - length).starts_with(literal)) {
          refuse_number(stop - length, std::string(literal),
                        " is no number in JSON; Python's json writes such literals");
        }
      }
    }
  }

  [[noreturn]] void refuse_number(std::size_t begin, const std::string& written, const std::string& problem) const {
    const bool chooses = code_for_number_ != nullptr && !levels_.empty();
    throw Error(chooses ? code_for_number_(levels_.front().key) : code_,
                {.file = file_,
                 .tensor = path(),
                 .problem = "what stands at " + place(text_, begin) + problem,
                 .expected = "a finite number",
                 .got = written});
  }

  std::string_view text_;
  const std::string& file_;
  ErrorCode code_;
  Code code_for_number_;
  Json root_;
  std::vector<Level> levels_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& file, ErrorCode code,
                ErrorCode (*code_for_number)(std::string_view)) {
  check_encoding(text, file, code);
  Builder builder(text, file, code, code_for_number);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string raw_number(const Json& value) {
  if (!value.is_binary() || value.get_binary().subtype() != kRawNumber) return {};
  return {value.get_binary().begin(), value.get_binary().end()};
}

}  // namespace peft::config
