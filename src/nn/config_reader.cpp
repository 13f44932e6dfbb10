#include "nn/config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/json_file.h"

namespace peft::nn {
namespace {

constexpr std::pair<std::string_view, Activation> kActivations[] = {
    {"silu", Activation::silu},          {"swish", Activation::silu},
    {"gelu", Activation::gelu},          {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_new", Activation::gelu_tanh}, {"relu", Activation::relu}};

constexpr std::string_view kRopeTypes[] = {"default", "linear", "llama3", "yarn"};

}  // namespace

std::string Reader::read(const std::string& file) { return model::read_text(file); }

Reader Reader::parse(const std::string& text, const std::string& file) {
  Reader reader;
  reader.json_ = model::parse_object(text, file, ErrorCode::MD_FORM);
  reader.file_ = file;
  return reader;
}

void Reader::fail(const std::string& key, const std::string& problem, const std::string& expected,
                  const std::string& got) const {
  throw Error(ErrorCode::MD_FORM,
              {.file = file_, .tensor = path_ + key, .problem = problem, .expected = expected, .got = got});
}

const Reader::Json* Reader::find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

bool Reader::has(const char* key) const { return find(key) != nullptr; }

std::string Reader::show(const char* key) const {
  const Json* value = find(key);
  return value == nullptr ? "nothing" : value->dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::int64_t Reader::size(const char* key, std::int64_t limit) const {
  const Json* value = find(key);
  const bool good = value != nullptr && value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<std::uint64_t>() <= static_cast<std::uint64_t>(limit));
  const std::int64_t number = good ? value->get<std::int64_t>() : 0;
  if (number <= 0 || number > limit) {
    fail(key, value == nullptr ? "the config lacks a key that the model needs" : "a size that cannot be",
         "an integer from 1 to " + std::to_string(limit), show(key));
  }
  return number;
}

std::int64_t Reader::size_or(const char* key, std::int64_t fallback) const { return has(key) ? size(key) : fallback; }

std::int64_t Reader::size_of(std::initializer_list<const char*> keys, std::int64_t limit) const {
  for (const char* key : keys)
    if (has(key)) return size(key, limit);
  return size(*keys.begin(), limit);
}

std::int64_t Reader::whole(const char* key, std::int64_t fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number_integer()) fail(key, "not an integer", "an integer", show(key));
  return value->get<std::int64_t>();
}

double Reader::number(const char* key, double fallback) const { return has(key) ? needed_number(key) : fallback; }

double Reader::needed_number(const char* key) const {
  const Json* value = find(key);
  const bool good = value != nullptr && value->is_number() && std::isfinite(value->get<double>());
  if (!good)
    fail(key, value == nullptr ? "the config lacks a key that the model needs" : "not a number", "a number", show(key));
  return value->get<double>();
}

bool Reader::flag(const char* key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(key, "not true or false", "true or false", show(key));
  return value->get<bool>();
}

std::string Reader::text(const char* key, const char* fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) fail(key, "not a string", "a string", show(key));
  return value->get<std::string>();
}

std::vector<std::int64_t> Reader::list(const char* key) const {
  std::vector<std::int64_t> numbers;
  const Json* value = find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array()) fail(key, "not a list", "a list of integers", show(key));
  for (const Json& entry : *value) {
    if (!entry.is_number_integer()) fail(key, "not a list of integers", "a list of integers", show(key));
    numbers.push_back(entry.get<std::int64_t>());
  }
  return numbers;
}

std::vector<std::string> Reader::texts(const char* key) const {
  std::vector<std::string> names;
  const Json* value = find(key);
  if (value == nullptr) return names;
  if (!value->is_array()) fail(key, "not a list", "a list of names", show(key));
  for (const Json& entry : *value) {
    if (!entry.is_string()) fail(key, "not a list of names", "a list of names", show(key));
    names.push_back(entry.get<std::string>());
  }
  return names;
}

Reader Reader::section(const char* key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_object())
    fail(key, "the config lacks a section that the model needs", "an object", show(key));
  Reader reader;
  reader.json_ = *value, reader.file_ = file_, reader.path_ = path_ + key + ".";
  return reader;
}

Activation Reader::activation(const char* key) const {
  const std::string name = text(key, "silu");
  std::string known;
  for (const auto& [spelling, activation] : kActivations) {
    if (spelling == name) return activation;
    known += (known.empty() ? "" : ", ") + std::string(spelling);
  }
  fail(key, "an activation that is not implemented", known, name);
}

void Reader::read_scaling(const Reader& source, RopeConfig& rope) const {
  if (rope.type != "default") rope.factor = source.needed_number("factor");
  if (rope.type == "llama3") {
    rope.low_freq_factor = source.needed_number("low_freq_factor");
    rope.high_freq_factor = source.needed_number("high_freq_factor");
  }
  if (rope.type == "llama3" || rope.type == "yarn") {
    rope.original_max_position = source.has("original_max_position_embeddings")
                                     ? source.needed_number("original_max_position_embeddings")
                                     : needed_number("max_position_embeddings");
  }
  if (source.has("attention_factor")) rope.attention_factor = source.needed_number("attention_factor");
  rope.beta_fast = source.number("beta_fast", 32), rope.beta_slow = source.number("beta_slow", 1);
  rope.mscale = source.number("mscale", 0), rope.mscale_all_dim = source.number("mscale_all_dim", 0);
  rope.truncate = source.flag("truncate", true);
  const bool positive = rope.factor > 0 && rope.theta > 1 && rope.partial > 0 && rope.partial <= 1 &&
                        rope.original_max_position >= 0 && rope.high_freq_factor > rope.low_freq_factor;
  if (!positive)
    source.fail("rope_type", "rotary parameters that make no sense", "positive numbers", source.json_.dump());
}

RopeConfig Reader::rope(double default_theta, double default_partial, std::int64_t head_dim) const {
  const char* key = has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  Reader empty = *this;
  empty.json_ = Json::object();
  const Reader source = has(key) ? section(key) : empty;
  RopeConfig rope;
  rope.type = source.text("rope_type", source.text("type", "default").c_str());
  if (rope.type == "mrope")
    rope.type = "default";  // what transformers makes of it: sections beside the default frequencies
  if (std::find(std::begin(kRopeTypes), std::end(kRopeTypes), rope.type) == std::end(kRopeTypes)) {
    fail(key, "a kind of rotary embedding that is not implemented", "default, linear, llama3 or yarn", rope.type);
  }
  rope.theta = source.number("rope_theta", number("rope_theta", default_theta));
  rope.partial = source.number("partial_rotary_factor", number("partial_rotary_factor", default_partial));
  read_scaling(source, rope);
  const auto rotary = static_cast<std::int64_t>(static_cast<double>(head_dim) * rope.partial);
  if (rotary < 2 || rotary % 2 != 0) {
    fail("head_dim", "the rotary part of a head must be an even number", "an even number", std::to_string(rotary));
  }
  return rope;
}

}  // namespace peft::nn
