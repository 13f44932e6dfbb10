#include <fstream>

#include "support/golden_checks.h"
#include "support/judge.h"
#include "tokenizer/tokenizer.h"

namespace peft::testing {
namespace {

std::string streamed(Tokenizer& tokenizer, const std::vector<std::int64_t>& ids) {
  TextStream stream(tokenizer);
  std::string text;
  for (const auto id : ids) text += stream.add(id);
  return text + stream.finish();
}

void check_text(Tokenizer& tokenizer, const Json& line) {
  const auto text = line.at("text").get<std::string>();
  const std::string where = Json(text).dump();
  const auto ids = tokenizer.encode(text), plain = tokenizer.encode(text, false);
  require(ids == line.at("ids").get<std::vector<std::int64_t>>(), "ids of " + where);
  require(plain == line.at("ids_plain").get<std::vector<std::int64_t>>(), "ids without special tokens of " + where);
  require(tokenizer.decode(plain, false) == line.at("decoded").get<std::string>(), "text of the ids of " + where);
  require(tokenizer.decode(ids, true) == line.at("decoded_skip").get<std::string>(),
          "text without special tokens of " + where);
  require(streamed(tokenizer, ids) == line.at("decoded_skip").get<std::string>(), "streamed text of " + where);
}

}  // namespace

void check_tokenizer(const Case& c, const std::filesystem::path&) {
  Tokenizer tokenizer(c.folder.string());
  std::ifstream lines(c.folder / "encode.jsonl");
  int texts = 0;
  for (std::string line; std::getline(lines, line); ++texts) check_text(tokenizer, Json::parse(line));
  require(texts > 0 && texts == c.json.at("texts").get<int>(), "another number of texts than case.json says");
}

}  // namespace peft::testing
