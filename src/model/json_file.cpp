#include "model/json_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "safetensors/reading/input_file.h"

namespace peft::model {
namespace {

constexpr std::uintmax_t kMaxBytes = 64u << 20;
constexpr int kMaxDepth = 64;

template <class J>
J parse(std::string_view text, const std::string& file, ErrorCode code) {
  const auto limit_depth = [&](int depth, typename J::parse_event_t event, J&) {
    using Event = typename J::parse_event_t;
    if (depth > kMaxDepth && (event == Event::object_start || event == Event::array_start)) {
      throw Error(ErrorCode::ST_DEPTH, {.file = file,
                                        .problem = "JSON is nested too deeply",
                                        .expected = "at most " + std::to_string(kMaxDepth) + " levels"});
    }
    return true;
  };
  J json;
  try {
    json = J::parse(text.begin(), text.end(), limit_depth);
  } catch (const nlohmann::json::exception& error) {
    throw Error(code, {.file = file, .problem = "not valid JSON", .got = error.what()});
  }
  if (!json.is_object()) {
    throw Error(code, {.file = file, .problem = "not a JSON object", .got = json.type_name()});
  }
  return json;
}

}  // namespace

std::string read_text(const std::string& path) {
  std::error_code status;
  const auto size = std::filesystem::file_size(path, status);
  if (!status && size > kMaxBytes) {
    throw Error(ErrorCode::MD_FORM, {.file = path,
                                     .problem = "the file is too large for a config",
                                     .expected = "at most " + std::to_string(kMaxBytes) + " bytes",
                                     .got = std::to_string(size) + " bytes"});
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (status || !in || !(text << in.rdbuf())) {
    throw Error(ErrorCode::IO_OPEN,
                {.file = path, .problem = "cannot be read", .got = status ? status.message() : std::strerror(errno)});
  }
  std::string all = std::move(text).str();
  safetensors::refuse_lfs_pointer(all, path, ErrorCode::MD_FORM);
  return all;
}

Json parse_object(std::string_view text, const std::string& file, ErrorCode code) {
  return parse<Json>(text, file, code);
}

OrderedJson parse_ordered_object(std::string_view text, const std::string& file, ErrorCode code) {
  return parse<OrderedJson>(text, file, code);
}

}  // namespace peft::model
