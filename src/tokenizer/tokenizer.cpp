#include "tokenizer/tokenizer.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "peft/error.h"
#include "pythonic/python_json.h"
#include "tokenizer/tokenizer_helper.h"  // made by CMake from tokenizer_helper.py

extern char** environ;

namespace peft {
namespace {

namespace fs = std::filesystem;
using pythonic::Json;

std::vector<std::string> pythons() {
  if (const char* named = std::getenv("PEFT_PYTHON"); named != nullptr && *named != '\0') return {named};
  std::vector<std::string> candidates;
  if (std::error_code error; fs::exists(kBuildPython, error)) candidates.emplace_back(kBuildPython);
  candidates.emplace_back("python3");
  return candidates;
}

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
      at({}).fail(ErrorCode::RT_TOKENIZER, {.problem = fmt::format("no pipe to Python: {}", std::strerror(errno))});
    read_end = ends[0], write_end = ends[1];
  }
};

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD: what bytes that are no whole character decode to

// Bytes of `text` without the replacement characters at its end: the next token may complete them.
std::size_t complete_part(std::string_view text) {
  while (text.ends_with(kReplacement)) text.remove_suffix(kReplacement.size());
  return text.size();
}

}  // namespace

// A running helper. Ends when its standard input is closed.
struct Tokenizer::Process {
  pid_t pid = -1;
  std::FILE* to = nullptr;
  std::FILE* from = nullptr;
  std::string file;

  [[noreturn]] void fail(ErrorReason reason) const { at(file).fail(ErrorCode::RT_TOKENIZER, std::move(reason)); }

  // 0, or the errno of what could not be started.
  int start(const std::string& python) {
    const Pipe requests, answers;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, requests.read_end, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, answers.write_end, STDOUT_FILENO);
    const char* const argv[] = {python.c_str(), "-c", kHelperScript, file.c_str(), nullptr};
    const int error = posix_spawnp(&pid, python.c_str(), &actions, nullptr, const_cast<char* const*>(argv), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(requests.read_end);
    close(answers.write_end);
    to = fdopen(requests.write_end, "w");
    from = fdopen(answers.read_end, "r");
    if (error != 0) pid = -1;
    return error;
  }

  void stop() {
    if (to != nullptr) std::fclose(to);
    if (from != nullptr) std::fclose(from);
    to = from = nullptr;
    if (pid > 0) waitpid(pid, nullptr, 0);
    pid = -1;
  }
  ~Process() { stop(); }

  Json answer() {
    char* line = nullptr;
    std::size_t capacity = 0;
    const ssize_t size = getline(&line, &capacity, from);
    const std::string text(line == nullptr ? "" : line, size < 0 ? 0 : static_cast<std::size_t>(size));
    std::free(line);
    if (text.empty()) fail({.problem = "the Python process that reads the tokenizer ended"});
    return pythonic::parse_json(text, "<tokenizer helper>", ErrorCode::RT_TOKENIZER);
  }

  Json ask(const Json& request) {
    const std::string line = pythonic::dump_python(request, -1) + "\n";
    std::fwrite(line.data(), 1, line.size(), to);
    std::fflush(to);  // a helper that is gone shows in its answer
    Json reply = answer();
    if (reply.contains("error")) fail({.problem = "the tokenizer refuses", .got = reply["error"].get<std::string>()});
    return reply;
  }
};

Tokenizer::Tokenizer(const std::string& folder) : process_(std::make_unique<Process>()) {
  process_->file = (fs::path(folder) / "tokenizer.json").string();
  if (!fs::exists(process_->file)) {
    process_->fail({.problem = "the base model has no tokenizer.json", .hint = "give token ids with --ids"});
  }
  std::string tried;
  for (const auto& python : pythons()) {
    if (!tried.empty()) tried += "; ";
    if (const int error = process_->start(python); error != 0) {
      tried += fmt::format("{}: {}", python, std::strerror(error));
      process_->stop();
      continue;
    }
    const Json ready = process_->answer();
    if (ready.contains("ready")) return;
    if (ready.contains("error")) {
      process_->fail({.problem = "the file is no tokenizer", .got = ready["error"].get<std::string>()});
    }
    tried += fmt::format("{}: {}", python, ready.value("missing", "no answer"));
    process_->stop();
  }
  at({}).fail(ErrorCode::RT_TOKENIZER,
              {.problem = "text needs a Python with the package `tokenizers`, and none was found",
               .got = tried,
               .hint = "pip install tokenizers, or name a Python that has it in PEFT_PYTHON; --ids works without"});
}

Tokenizer::~Tokenizer() = default;

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) {
  return process_->ask({{"text", text}, {"special", add_special_tokens}})["ids"].get<std::vector<std::int64_t>>();
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens) {
  return process_->ask({{"ids", ids}, {"skip", skip_special_tokens}})["text"].get<std::string>();
}

TrainingText Tokenizer::training_text(std::string_view json_row, bool completion_only, bool assistant_only) {
  const Json row = pythonic::parse_json(json_row, "", ErrorCode::DT_ROW);
  const Json reply =
      process_->ask({{"row", row}, {"completion_only", completion_only}, {"assistant_only", assistant_only}});
  if (reply.contains("row_error")) at({}).fail(ErrorCode::DT_ROW, {.problem = reply["row_error"].get<std::string>()});
  return {reply["ids"].get<std::vector<std::int64_t>>(), reply["learnt"].get<std::vector<std::uint8_t>>(),
          reply["prompt_begins"].get<bool>()};
}

// The whole list is decoded each time: decoders look at neighbours (spaces at the start, runs of bytes). Where a token
// changes text before it, which only broken UTF-8 does, what is printed stays and the rest follows.
std::string TextStream::rest_after(std::size_t end) {
  if (end <= printed_) return {};
  std::string rest = text_.substr(printed_, end - printed_);
  printed_ = end;
  return rest;
}

std::string TextStream::add(std::int64_t id) {
  ids_.push_back(id);
  std::string text = tokenizer_.decode(ids_, true);
  const bool continues = text.compare(0, printed_, text_, 0, printed_) == 0;
  text_ = std::move(text);
  return continues ? rest_after(complete_part(text_)) : std::string();
}

std::string TextStream::finish() { return rest_after(text_.size()); }

}  // namespace peft
