// Strict access to the keys of a config.json, for code that needs them. Every failure names the key, what it should be
// and what it is.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "model/config_json/config_facts.h"
#include "model/json_file.h"

namespace peft::model {

// No model has a larger size. A config that claims one would only cost memory.
inline constexpr std::int64_t kMaxSize = std::int64_t{1} << 31;

// `path`: a folder with a config.json, or the file itself.
ConfigFacts read_config_facts(const std::string& path);

class ConfigSection {
 public:
  explicit ConfigSection(const ConfigFacts& facts) : json_(facts.config()), file_(facts.file()) {}
  // Any JSON file with an object in it.
  static ConfigSection read(const std::string& file);

  bool has(const char* key) const;                                          // present and not null
  std::int64_t size(const char* key, std::int64_t limit = kMaxSize) const;  // positive; an error when absent
  std::int64_t size_or(const char* key, std::int64_t fallback) const;
  std::int64_t size_of(std::initializer_list<const char*> keys, std::int64_t limit) const;  // one of the spellings
  std::int64_t whole(const char* key, std::int64_t fallback) const;
  double number(const char* key, double fallback) const;
  double needed_number(const char* key) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, const std::string& fallback) const;
  std::vector<std::int64_t> one_or_more(const char* key) const;  // a number or a list of them; empty when absent
  std::vector<std::string> texts(const char* key) const;         // empty when absent
  ConfigSection section(const char* key) const;                  // an error when absent
  ConfigSection without_keys() const;                            // an empty section at the same place

  std::string show(const char* key) const;  // the value, for messages
  std::string show() const { return json_.dump(); }
  [[noreturn]] void fail(const std::string& key, ErrorReason reason) const;  // MD_FORM

 private:
  ConfigSection(Json json, std::string file) : json_(std::move(json)), file_(std::move(file)) {}
  const Json* find(const char* key) const;
  Json json_;
  std::string file_, path_;  // path_: "text_config."
};

}  // namespace peft::model
