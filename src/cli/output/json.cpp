#include "cli/output/json.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "cli/output/output.h"
#include "plan/members.h"

namespace peft::cli {

void print_json(const Json& value) { write_out(pythonic::dump_python(value) + "\n"); }

Json error_json(const Error& error) {
  const ErrorDetail& detail = error.detail();
  return {{"code", info(error.code()).name},
          {"file", detail.file},
          {"tensor", detail.tensor},
          {"problem", detail.problem},
          {"expected", detail.expected},
          {"got", detail.got},
          {"hint", detail.hint},
          {"python_error", detail.python_error}};
}

Json plan_json(const Plan& plan) {
  Json files = Json::array();
  for (const auto& file : plan.files) {
    Json tensors = Json::array();
    for (const auto& tensor : file.tensors) {
      tensors.push_back({{"name", tensor.name},
                         {"dtype", type_name(tensor)},
                         {"shape", tensor.shape},
                         {"blocks", plan::count_views(tensor)}});
    }
    std::sort(tensors.begin(), tensors.end(), [](const Json& a, const Json& b) { return a["name"] < b["name"]; });
    files.push_back({{"name", file.name}, {"tensors", tensors}});
  }
  std::vector<std::string> texts, copies;
  for (const auto& [name, content] : plan.texts) texts.push_back(name);
  for (const auto& [name, path] : plan.copies) copies.push_back(name);
  return {{"files", files},
          {"texts", sorted(texts)},
          {"copies", sorted(copies)},
          {"exactness", name(plan.exactness)},
          {"steps", plan.steps},
          {"warnings", plan.warnings},
          {"bytes_in", plan.bytes_in},
          {"bytes_out", plan.bytes_out},
          {"peak_memory", plan.peak_memory}};
}

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json sorted(std::vector<std::string> texts) {
  std::sort(texts.begin(), texts.end());
  return texts;
}

namespace {

int exit_code_of(const Error& error, bool one_is_an_answer) {
  const int code = info(error.code()).exit_code;
  const bool is_input = code == 1 || (code == 3 && error.code() != ErrorCode::IO_WRITE);
  return one_is_an_answer && is_input ? 2 : code;
}

}  // namespace

void write_error(const Error& error) { write_err(red(Error::kWord, STDERR_FILENO) + std::string(error.text()) + "\n"); }

Error current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::OUT_MEMORY, {.problem = "out of memory"});
  } catch (const std::exception& error) {
    return Error(ErrorCode::INTERNAL, {.problem = error.what(), .hint = "please report this, with the command line"});
  }
}

int report(const Error& error, bool json, bool one_is_an_answer) {
  if (json) {
    print_json({{"error", error_json(error)}});
    finish_output();
  } else {
    write_error(error);
  }
  return exit_code_of(error, one_is_an_answer);
}

}  // namespace peft::cli
