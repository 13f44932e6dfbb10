#include "execute/journal.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/system_calls.h"
#include "peft/error.h"
#include "safetensors/input_file.h"

namespace peft::execution {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;
constexpr std::size_t kChecksumDigits = 16;

std::string line_of(std::string_view json) {
  return fmt::format("{:016x} {}\n", XXH3_64bits(json.data(), json.size()), json);
}

// The JSON of a line that is as it was written.
std::optional<Json> parse_line(std::string_view line) {
  if (line.size() <= kChecksumDigits) return std::nullopt;
  const std::string_view json = line.substr(kChecksumDigits + 1);
  if (line_of(json) != std::string(line) + "\n") return std::nullopt;
  Json parsed = Json::parse(json, nullptr, false);
  return parsed.is_object() ? std::optional(std::move(parsed)) : std::nullopt;
}

[[noreturn]] void refuse(const std::string& path, std::string problem, std::string expected, std::string got) {
  throw Error(ErrorCode::RS_JOURNAL, {.file = path,
                                      .problem = std::move(problem),
                                      .expected = std::move(expected),
                                      .got = std::move(got),
                                      .hint = "start over: --overwrite, or remove the folder that the journal is in"});
}

void check_first_line(const std::string& path, const Json& line, const std::string& fingerprint) {
  const std::string got = line.at("fingerprint").get<std::string>();
  if (line.at("journal").get<int>() == kFormat && got == fingerprint) return;
  refuse(path, "the unfinished output is of another run: other options, other files or another version",
         "fingerprint " + fingerprint, got);
}

void use_line(const std::string& path, std::size_t number, const Json& line, const std::string& fingerprint,
              std::vector<FinishedFile>& files) {
  try {
    if (number == 1) return check_first_line(path, line, fingerprint);
    FinishedFile file{.name = line.at("file").get<std::string>(),
                      .size = line.at("size").get<std::uint64_t>(),
                      .staging = line.at("staging").get<std::uint64_t>()};
    if (line.contains("digest")) file.digest = line.at("digest").get<std::uint64_t>();
    files.push_back(std::move(file));
  } catch (const Json::exception& error) {
    refuse(path, fmt::format("line {} is no line of a journal", number), "", error.what());
  }
}

void read_journal(const std::string& path, const std::string& fingerprint, std::vector<FinishedFile>& files) {
  const safetensors::InputFile input(path);
  std::string text(input.size(), '\0');
  input.read(0, text);
  std::size_t bad = 0;  // number of the first line that cannot be used
  for (std::size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const auto line = parse_line(std::string_view(text).substr(begin, end - begin));
    // A line without an end, or damaged, is the last one of a run that was stopped; but only the last one.
    if (!line || end == text.size()) {
      if (bad == 0) bad = number;
    } else if (bad != 0) {
      refuse(path, fmt::format("line {} of the journal is damaged", bad), "the checksum of its text", "another one");
    } else {
      use_line(path, number, *line, fingerprint, files);
    }
    begin = end + 1;
  }
}

}  // namespace

std::vector<FinishedFile> read_journals(const std::string& staging, const std::string& fingerprint) {
  std::vector<FinishedFile> files;
  for (const std::string& path : safetensors::journal_paths(staging)) read_journal(path, fingerprint, files);
  return files;
}

Journal::Journal(const safetensors::StagingFolder& staging, const std::string& fingerprint, bool sync)
    : path_(staging.journal_path()), sync_(sync) {
  fd_ = SystemCalls::get().open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) safetensors::fail_writing(path_, "open", errno);
  try {
    write(line_of(Json{{"journal", kFormat}, {"fingerprint", fingerprint}}.dump()));
    if (sync_) safetensors::sync_folder(staging.path());
  } catch (...) {
    withdraw();
    SystemCalls::get().close(fd_);  // the destructor does not run after a throw from here
    throw;
  }
}

Journal::~Journal() { SystemCalls::get().close(fd_); }

void Journal::withdraw() noexcept { SystemCalls::get().unlink(path_.c_str()); }

void Journal::add(const std::vector<FinishedFile>& files) {
  std::string lines;
  for (const FinishedFile& file : files) {
    Json line{{"file", file.name}, {"size", file.size}, {"staging", file.staging}};
    if (file.digest) line["digest"] = *file.digest;
    lines += line_of(line.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  write(lines);
}

void Journal::write(const std::string& lines) {
  auto& calls = SystemCalls::get();
  for (std::size_t done = 0; done < lines.size();) {
    const iovec part{const_cast<char*>(lines.data()) + done, lines.size() - done};
    const ssize_t written = calls.pwritev(fd_, &part, 1, static_cast<off_t>(end_ + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) safetensors::fail_writing(path_, "write", written < 0 ? errno : EIO);
    done += static_cast<std::size_t>(written);
  }
  end_ += lines.size();
  if (sync_ && calls.fdatasync(fd_) != 0) safetensors::fail_writing(path_, "fdatasync", errno);
}

}  // namespace peft::execution
