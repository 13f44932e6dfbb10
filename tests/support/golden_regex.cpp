// Rows of golden/regex/python_re.jsonl: what Python 3.11 answered for a pattern and a text.
#include "pythonic/python_regex.h"
#include "pythonic/regex/parser.h"
#include "pythonic/unicode.h"
#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace {

Json spans_in_characters(const std::optional<PythonRegex::Groups>& groups, const std::string& text) {
  if (!groups) return nullptr;
  const auto characters = [&](std::int64_t bytes) {
    return pythonic::decode_utf8(std::string_view(text).substr(0, static_cast<std::size_t>(bytes))).size();
  };
  Json result = Json::array();
  for (const auto& [begin, end] : *groups) {
    result.push_back(begin < 0 ? Json(nullptr) : Json::array({characters(begin), characters(end)}));
  }
  return result;
}

void answer_syntax(Json& row, const std::string& pattern) {
  std::vector<pythonic::RegexWarning> warnings;
  try {
    pythonic::RegexParser parser(pythonic::decode_utf8(pattern), &warnings);
    parser.parse();
  } catch (const pythonic::RegexError& error) {
    row["error"]["class"] = error.kind;
    if (error.kind == "re.error") {
      row["error"]["message"] = error.message;
      row["error"]["pos"] = error.position ? Json(*error.position) : Json(nullptr);
    }
  }
  for (const pythonic::RegexWarning& warning : warnings) {
    row["warnings"].push_back(Json::array({warning.category, warning.text}));
  }
}

// The row as this implementation would write it.
Json answer(const std::string& pattern, const std::string& text) {
  Json row;
  row["p"] = pattern;
  row["s"] = text;
  answer_syntax(row, pattern);
  try {
    const PythonRegex regex(pattern);
    row["fullmatch"] = spans_in_characters(regex.fullmatch(text), text);
    row["match"] = spans_in_characters(regex.match(text), text);
    row["search"] = spans_in_characters(regex.search(text), text);
    for (const auto& [name, number] : regex.names()) row["names"][name] = number;
    require(regex.matches(text) == !row["match"].is_null(), "matches() and match() differ");
    require(regex.fullmatches(text) == !row["fullmatch"].is_null(), "fullmatches() and fullmatch() differ");
  } catch (const Error& error) {
    require(error.code() == ErrorCode::CF_REGEX, error.what());
    if (!row.contains("error")) row["error"]["class"] = "ours";
    row["error"]["text"] = error.detail().problem;
  }
  return row;
}

}  // namespace

void check_regex(const Case& c, const std::filesystem::path&) {
  const Json got = answer(c.json.at("p").get<std::string>(), c.json.at("s").get<std::string>());
  // The order of keys has no meaning here.
  require(nlohmann::json(got) == nlohmann::json(c.json), "got " + got.dump() + ", Python says " + c.json.dump());
}

}  // namespace peft::testing
