#include "model/json_file.h"

#include "safetensors/reading/input_file.h"

namespace peft::model {
namespace {

template <class J>
J parse(std::string_view text, const std::string& file, ErrorCode code) {
  const ErrorPlace here = at(file);
  const auto limit_depth = [&](int depth, typename J::parse_event_t event, J&) {
    using Event = typename J::parse_event_t;
    if (depth > kMaxJsonDepth && (event == Event::object_start || event == Event::array_start)) {
      here.fail(ErrorCode::ST_DEPTH, {.problem = "JSON is nested too deeply",
                                      .expected = "at most " + std::to_string(kMaxJsonDepth) + " levels"});
    }
    return true;
  };
  J json;
  try {
    json = J::parse(text.begin(), text.end(), limit_depth);
  } catch (const nlohmann::json::exception& error) {
    here.fail(code, {.problem = "not valid JSON", .got = error.what()});
  }
  if (!json.is_object()) here.fail(code, {.problem = "not a JSON object", .got = json.type_name()});
  return json;
}

}  // namespace

std::string read_text(const std::string& path) {
  return safetensors::read_text_file(path, ErrorCode::MD_FORM, ErrorCode::IO_OPEN);
}

Json parse_object(std::string_view text, const std::string& file, ErrorCode code) {
  return parse<Json>(text, file, code);
}

OrderedJson parse_ordered_object(std::string_view text, const std::string& file, ErrorCode code) {
  return parse<OrderedJson>(text, file, code);
}

Json read_object(const std::string& path) { return parse_object(read_text(path), path); }

}  // namespace peft::model
