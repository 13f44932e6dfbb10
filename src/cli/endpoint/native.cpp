#include "cli/endpoint/native.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/text.h"
#include "cli/output/json.h"
#include "cli/runtime/runtime.h"
#include "peft/error.h"
#include "peft/safetensors.h"

extern char** environ;

namespace peft::cli {
namespace {

namespace fs = std::filesystem;
constexpr const char* kConfig = "adapter_config.json";

std::string program() {
  const auto places = places_of_peft_torch();
  const auto found = std::ranges::find_if(places, [](const auto& place) { return access(place.c_str(), X_OK) == 0; });
  if (found != places.end()) return *found;
  at(places.empty() ? "peft-torch" : places.front())
      .fail(ErrorCode::RT_PROGRAM, {.problem = "peft-torch, the part of peft that runs models, is not there",
                                    .hint = "what a server says is compared with what it says (docs/building.md)"});
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Runs a program with its output in a file. The exit code; -1 where it did not end by itself.
int run_program(const std::vector<std::string>& arguments, const std::string& output) {
  std::vector<char*> argv;
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int error = posix_spawn(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    at(arguments[0])
        .fail(ErrorCode::RT_PROGRAM, {.problem = std::string("cannot be started: ") + std::strerror(error)});
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Of each token but the first, of logits [1, tokens, vocabulary] in F32.
LogProbabilities read_logits(const std::string& path, const std::vector<std::int64_t>& ids) {
  const auto file = TensorFile::open(path);
  const TensorInfo* tensor = file->find("logits");
  const bool fits = tensor != nullptr && tensor->dtype == Dtype::f32 && tensor->shape.size() == 3 &&
                    tensor->shape[0] == 1 && tensor->shape[1] == static_cast<std::int64_t>(ids.size()) &&
                    std::ranges::all_of(ids, [&](std::int64_t id) { return id < tensor->shape[2]; });
  if (!fits) at(path, "logits").fail(ErrorCode::RT_PROGRAM, {.problem = "peft-torch wrote no logits of these tokens"});
  const auto vocabulary = static_cast<std::size_t>(tensor->shape[2]);
  const auto bytes = file->bytes(*tensor);
  LogProbabilities result;
  std::vector<float> row(vocabulary);
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    std::memcpy(row.data(), bytes.data() + i * vocabulary * sizeof(float), vocabulary * sizeof(float));
    const auto largest = static_cast<double>(*std::ranges::max_element(row));
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit) - largest);
    result.push_back(static_cast<double>(row[static_cast<std::size_t>(ids[i + 1])]) - largest - std::log(sum));
  }
  return result;
}

void multiply(Json& config, double scale) {
  if (config.contains("lora_alpha") && config.at("lora_alpha").is_number())
    config["lora_alpha"] = config.at("lora_alpha").get<double>() * scale;
  if (!config.contains("alpha_pattern") || !config.at("alpha_pattern").is_object()) return;
  for (auto& [name, alpha] : config.at("alpha_pattern").items())
    if (alpha.is_number()) alpha = alpha.get<double>() * scale;
}

}  // namespace

NativeRuntime::NativeRuntime(std::string base, std::string adapter, std::vector<std::int64_t> ids)
    : base_(std::move(base)), adapter_(std::move(adapter)), ids_(std::move(ids)) {
  std::string name = (fs::temp_directory_path() / "peft-endpoint-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr)
    at(name).fail(ErrorCode::IO_WRITE, {.problem = std::string("no folder can be made: ") + std::strerror(errno)});
  folder_ = name;
}

NativeRuntime::~NativeRuntime() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

LogProbabilities NativeRuntime::run(const std::string& adapter) const {
  const std::string out = folder_ + "/logits.safetensors", said = folder_ + "/output.txt";
  std::vector<std::string> arguments = {
      program(), "logits",  "--base", base_, "--ids",      fmt::format("{}", fmt::join(ids_, ",")),
      "--dtype", "float32", "--out",  out,   "--overwrite"};
  if (!adapter.empty()) arguments.insert(arguments.end(), {"--adapter", adapter});
  if (run_program(arguments, said) == 0) return read_logits(out, ids_);
  at(arguments[0])
      .fail(ErrorCode::RT_PROGRAM,
            {.problem = "the model could not be run here", .got = printable(text_of(said), 2000)});
}

bool NativeRuntime::has_alpha() const {
  const Json config = Json::parse(text_of(fs::path(adapter_) / kConfig), nullptr, false);
  return config.is_object() && config.contains("lora_alpha");
}

LogProbabilities NativeRuntime::with_scale(double scale) const {
  const fs::path folder = fs::path(folder_) / "scaled";
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(adapter_)) {
    if (entry.path().filename() == kConfig || !entry.is_regular_file()) continue;
    fs::copy_file(entry.path(), folder / entry.path().filename());
  }
  Json config = Json::parse(text_of(fs::path(adapter_) / kConfig), nullptr, false);
  if (!config.is_object()) at(adapter_).fail(ErrorCode::CF_FORM, {.problem = "the config is no JSON object"});
  multiply(config, scale);
  std::ofstream(folder / kConfig) << config.dump(1);
  return run(folder.string());
}

}  // namespace peft::cli
