#include "peft/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "peft/error.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"

namespace peft::train {
namespace {

using pythonic::Json;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

[[noreturn]] void fail_writing(const std::string& path) {
  throw Error(ErrorCode::IO_WRITE,
              {.file = path, .problem = std::string("cannot be written: ") + std::strerror(errno)});
}

// The lines up to a step. A line that is not complete was being written when the run stopped.
std::string kept_lines(const std::string& path, std::int64_t step) {
  if (::access(path.c_str(), F_OK) != 0) return {};
  const std::string text = safetensors::read_text_file(path, ErrorCode::RS_JOURNAL, ErrorCode::RS_JOURNAL);
  std::string kept;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) {
      at(path).fail(ErrorCode::RS_JOURNAL, {.problem = "not a file of metrics that a run could go on with",
                                            .expected = "JSON lines with a step",
                                            .got = printable(line, 80),
                                            .hint = "give another --metrics file"});
    }
    if (json["step"].get<std::int64_t>() <= step) kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

Json state_json(const RunState& s) {
  Json json = {{"global_step", s.step},
               {"num_tokens", s.num_tokens},
               {"window_steps", s.window_steps},
               {"window_tokens", s.window_tokens},
               {"window_loss", s.window_loss},
               {"window_correct", s.window_correct},
               {"window_entropy", s.window_entropy},
               {"window_aux_loss", s.window_aux_loss},
               {"best_step", s.best_step},
               {"expert_tokens", s.expert_tokens}};
  json["best_eval_loss"] = s.best_eval_loss ? Json(*s.best_eval_loss) : Json(nullptr);
  return json;
}

void require_same(const std::string& file, const Json& stored,
                  const std::vector<std::pair<std::string, std::string>>& run) {
  for (const auto& [name, value] : run) {
    const std::string was = stored.value(name, std::string("nothing"));
    if (was == value) continue;
    at(file, name)
        .fail(ErrorCode::RS_JOURNAL,
              {.problem = "the checkpoint belongs to another run",
               .expected = was,
               .got = value,
               .hint = "give the flags and the data it was made with, or another --out for a new run"});
  }
}

}  // namespace

std::string json_of(const Metrics& m) {
  Json json = {{"step", m.step},
               {"epoch", number(m.epoch)},
               {"loss", number(m.loss)},
               {"grad_norm", number(m.grad_norm)},
               {"learning_rate", number(m.learning_rate)},
               {"num_tokens", m.num_tokens},
               {"mean_token_accuracy", number(m.mean_token_accuracy)},
               {"entropy", number(m.entropy)}};
  if (m.aux_loss) json["aux_loss"] = number(*m.aux_loss);
  json["seconds"] = number(m.seconds);
  return pythonic::dump_python(json, -1, false);
}

std::string json_of(const Evaluation& e) {
  const Json json = {{"step", e.step},
                     {"epoch", number(e.epoch)},
                     {"eval_loss", number(e.loss)},
                     {"eval_mean_token_accuracy", number(e.mean_token_accuracy)},
                     {"eval_entropy", number(e.entropy)},
                     {"eval_seconds", number(e.seconds)}};
  return pythonic::dump_python(json, -1, false);
}

MetricsFile::MetricsFile(std::string path, std::optional<std::int64_t> goes_on_after) : path_(std::move(path)) {
  const std::string kept = goes_on_after ? kept_lines(path_, *goes_on_after) : std::string();
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_writing(path_);
  if (!kept.empty()) append(kept.substr(0, kept.size() - 1));
}

MetricsFile::~MetricsFile() {
  if (fd_ >= 0) ::close(fd_);
}

void MetricsFile::append(const std::string& line) {
  const std::string text = line + "\n";
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(fd_, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_writing(path_);
    done += static_cast<std::size_t>(written);
  }
}

std::string RunState::to_json(const std::vector<std::pair<std::string, std::string>>& run) const {
  Json json = state_json(*this);
  for (const auto& [name, value] : run) json["run"][name] = value;
  return pythonic::dump_python(json);
}

RunState RunState::from_json(const std::string& file, const std::vector<std::pair<std::string, std::string>>& run) {
  const std::string text = safetensors::read_text_file(file, ErrorCode::RS_JOURNAL, ErrorCode::RS_JOURNAL);
  const Json json = pythonic::parse_json(text, file, ErrorCode::RS_JOURNAL);
  RunState s;
  try {
    require_same(file, json.at("run"), run);
    s.step = json.at("global_step"), s.num_tokens = json.at("num_tokens");
    s.window_steps = json.at("window_steps"), s.window_tokens = json.at("window_tokens");
    s.window_loss = json.at("window_loss"), s.window_correct = json.at("window_correct");
    s.window_entropy = json.at("window_entropy"), s.window_aux_loss = json.at("window_aux_loss");
    s.best_step = json.at("best_step");
    s.expert_tokens = json.at("expert_tokens").get<ExpertTokens>();
    if (!json.at("best_eval_loss").is_null()) s.best_eval_loss = json.at("best_eval_loss").get<double>();
  } catch (const nlohmann::json::exception& error) {
    at(file).fail(ErrorCode::RS_JOURNAL, {.problem = std::string("not the state of a training run: ") + error.what()});
  }
  return s;
}

}  // namespace peft::train
