#include "execute/resume/journal.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string_view>

#include "base/system.h"
#include "peft/error.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/writing/new_file.h"

namespace peft::execution {
namespace {

constexpr std::string_view kFirst = "peft-journal-1 ";
constexpr std::string_view kFinished = "finished ";
constexpr std::string_view kNoDigest = "-";
constexpr std::size_t kChecksumDigits = 16;

std::string line_of(std::string_view text) {
  return fmt::format("{:016x} {}\n", XXH3_64bits(text.data(), text.size()), text);
}

// The text of a line whose checksum is right.
std::optional<std::string_view> text_of(std::string_view line) {
  if (line.size() <= kChecksumDigits) return std::nullopt;
  const std::string_view text = line.substr(kChecksumDigits + 1);
  const std::string expected = line_of(text);
  if (line != std::string_view(expected).substr(0, expected.size() - 1)) return std::nullopt;
  return text;
}

[[noreturn]] void refuse(const std::string& path, std::string problem, std::string expected, std::string got) {
  throw Error(ErrorCode::RS_JOURNAL, {.file = path,
                                      .problem = std::move(problem),
                                      .expected = std::move(expected),
                                      .got = std::move(got),
                                      .hint = "start over: --overwrite, or remove the folder that the journal is in"});
}

std::string_view next_word(std::string_view& text) {
  const std::size_t end = std::min(text.find(' '), text.size());
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return word;
}

bool parse_number(std::string_view word, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, 16);
  return error == std::errc() && end == word.data() + word.size();
}

std::optional<FinishedFile> parse_finished(std::string_view text) {
  if (!text.starts_with(kFinished)) return std::nullopt;
  text.remove_prefix(kFinished.size());
  FinishedFile file;
  bool good = parse_number(next_word(text), file.size) && parse_number(next_word(text), file.staging);
  const std::string_view digest = next_word(text);
  if (digest != kNoDigest) good = good && parse_number(digest, file.digest.emplace());
  file.name = text;
  return good ? std::optional(std::move(file)) : std::nullopt;
}

std::string text_of(const FinishedFile& file) {
  const std::string digest = file.digest ? fmt::format("{:x}", *file.digest) : std::string(kNoDigest);
  return fmt::format("{}{:x} {:x} {} {}", kFinished, file.size, file.staging, digest, file.name);
}

void use_line(const std::string& path, std::size_t number, std::string_view text, const std::string& fingerprint,
              std::vector<FinishedFile>& files) {
  if (number == 1) {
    if (text == std::string(kFirst) + fingerprint) return;
    refuse(path, "the unfinished output is of another run: other options, other files or another version",
           "fingerprint " + fingerprint, std::string(text));
  }
  auto file = parse_finished(text);
  if (!file) refuse(path, fmt::format("line {} is no line of a journal", number), "", std::string(text));
  files.push_back(std::move(*file));
}

void read_journal(const std::string& path, const std::string& fingerprint, std::vector<FinishedFile>& files) {
  const safetensors::InputFile input(path);
  std::string text(input.size(), '\0');
  input.read(0, text);
  std::size_t bad = 0;  // number of the first damaged line
  for (std::size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const auto line = text_of(std::string_view(text).substr(begin, end - begin));
    // A run that was stopped may leave its last line damaged or without an end. Only the last line.
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
    write(line_of(std::string(kFirst) + fingerprint));
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
  for (const FinishedFile& file : files) lines += line_of(text_of(file));
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
