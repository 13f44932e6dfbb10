// Typed access to the keys of a config.json; every failure names the key, what it should be and what it is.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "nn/config.h"
#include "peft/error.h"

namespace peft::nn {

// Sizes no real model has; a config that claims them would only cost memory.
inline constexpr std::int64_t kMaxLayers = 10'000, kMaxExperts = 100'000, kMaxSize = std::int64_t{1} << 31;

class Reader {
 public:
  using Json = nlohmann::json;
  static std::string read(const std::string& file);
  static Reader parse(const std::string& text, const std::string& file);

  bool has(const char* key) const;                                          // present and not null
  std::int64_t size(const char* key, std::int64_t limit = kMaxSize) const;  // positive; an error when absent
  std::int64_t size_or(const char* key, std::int64_t fallback) const;
  std::int64_t size_of(std::initializer_list<const char*> keys, std::int64_t limit) const;  // one of the spellings
  std::int64_t whole(const char* key, std::int64_t fallback) const;
  double number(const char* key, double fallback) const;
  double needed_number(const char* key) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, const char* fallback) const;
  std::vector<std::int64_t> list(const char* key) const;  // empty when absent
  std::vector<std::string> texts(const char* key) const;
  Reader section(const char* key) const;  // an error when absent
  Activation activation(const char* key) const;
  RopeConfig rope(double default_theta, double default_partial, std::int64_t head_dim) const;

  std::string show(const char* key) const;
  [[noreturn]] void fail(const std::string& key, const std::string& problem, const std::string& expected,
                         const std::string& got) const;

 private:
  const Json* find(const char* key) const;
  void read_scaling(const Reader& source, RopeConfig& rope) const;
  Json json_;
  std::string file_, path_;  // path_: "text_config."
};

}  // namespace peft::nn
