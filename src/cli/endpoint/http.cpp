#include "cli/endpoint/http.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "peft/error.h"

namespace peft::cli {
namespace {

using Clock = std::chrono::steady_clock;

HttpAnswer failed(HttpFailure failure, std::string what) { return {failure, std::move(what), 0, {}}; }

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Waits until the socket is ready. False when the time is over.
bool wait_for(const Socket& socket, short events, Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
  if (left <= 0) return false;
  pollfd poll_fd{socket.fd(), events, 0};
  const int ready = poll(&poll_fd, 1, static_cast<int>(std::min<long long>(left, 1'000'000)));
  return ready > 0 || (ready < 0 && errno == EINTR);
}

// Connects to the first address that answers. `failure` says why none did.
Socket connect_to(const Url& url, Clock::time_point end, HttpAnswer& failure) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_family = AF_UNSPEC, hints.ai_socktype = SOCK_STREAM;
  if (const int code = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &list); code != 0) {
    failure = failed(HttpFailure::not_reached, gai_strerror(code));
    return Socket();
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(list, freeaddrinfo);
  failure = failed(HttpFailure::not_reached, "no address");
  for (const addrinfo* at = list; at != nullptr; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, at->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, at->ai_protocol));
    if (socket.fd() < 0) continue;
    int error = 0;
    socklen_t size = sizeof error;
    if (connect(socket.fd(), at->ai_addr, at->ai_addrlen) != 0 && errno != EINPROGRESS) error = errno;
    if (error == 0 && !wait_for(socket, POLLOUT, end)) {
      failure = failed(HttpFailure::too_late, "the connection was not made in time");
      continue;
    }
    if (error == 0) getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error == 0) return socket;
    failure = failed(HttpFailure::not_reached, std::strerror(error));
  }
  return Socket();
}

// False: the other side closed the connection, or the time is over.
bool send_all(const Socket& socket, std::string_view bytes, Clock::time_point end) {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      return false;
    } else if (!wait_for(socket, POLLOUT, end)) {
      return false;
    }
  }
  return true;
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

std::string_view without_blanks(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::optional<std::size_t> number_of(std::string_view text, int base) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

constexpr std::string_view kClosed = "the server closed the connection before its answer was whole";

}  // namespace

Url parse_url(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  const auto bad = [&](const char* problem) {
    at({}).fail(ErrorCode::USAGE, {.problem = problem,
                                   .expected = "http://HOST:PORT/v1",
                                   .got = text,
                                   .hint = text.starts_with("https://")
                                               ? "encryption is not spoken: ask the server itself, behind its proxy"
                                               : ""});
  };
  if (!text.starts_with(kScheme)) bad("not the address of a server");
  std::string_view rest = std::string_view(text).substr(kScheme.size());
  Url url;
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  url.path = rest.substr(slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  rest = rest.substr(0, slash);
  const std::size_t bracket = rest.starts_with('[') ? rest.find(']') : 0;  // [::1]:8000
  if (bracket == std::string_view::npos) bad("not the address of a server");
  const std::size_t colon = rest.find(':', bracket);
  url.host = bracket > 0 ? rest.substr(1, bracket - 1) : rest.substr(0, std::min(colon, rest.size()));
  if (colon != std::string_view::npos) url.port = rest.substr(colon + 1);
  const auto port = number_of(url.port, 10);
  if (url.host.empty() || !port || *port == 0 || *port > 65535) bad("not the address of a server");
  for (const char c : url.host + url.path)
    if (static_cast<unsigned char>(c) <= ' ') bad("not the address of a server");
  return url;
}

bool AnswerReader::read_head(std::size_t end) {
  std::string_view head = std::string_view(bytes_).substr(0, end);
  const auto status = number_of(head.substr(std::min<std::size_t>(9, end), 3), 10);
  if (!status || *status == 0) return false;
  status_ = static_cast<int>(*status);
  at_ = end + 4;
  while (head.find("\r\n") != std::string_view::npos) {
    head.remove_prefix(head.find("\r\n") + 2);
    const std::string_view line = head.substr(0, std::min(head.find("\r\n"), head.size()));
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string name = lower(line.substr(0, colon)), value = lower(without_blanks(line.substr(colon + 1)));
    if (name == "content-length") length_ = number_of(value, 10);
    if (name == "transfer-encoding") chunked_ = value.ends_with("chunked");
  }
  return true;
}

constexpr std::size_t kLongestLine = 4096;  // before a piece

// Joins the pieces that are whole. True when the last one, which is empty, is there.
bool AnswerReader::take_chunks() {
  for (;;) {
    const std::string_view rest = std::string_view(bytes_).substr(at_);
    const std::size_t line = rest.substr(0, kLongestLine).find("\r\n");
    if (line == std::string_view::npos) return false;
    const auto size = number_of(without_blanks(rest.substr(0, std::min(line, rest.substr(0, line).find(';')))), 16);
    if (!size || *size > kMaxAnswer) return false;
    if (*size == 0) return true;
    if (rest.size() < line + 2 + *size + 2) return false;
    body_ += rest.substr(line + 2, *size);
    at_ += line + 2 + *size + 2;
  }
}

HttpAnswer AnswerReader::answer(bool ended) {
  constexpr std::string_view kHeadEnd = "\r\n\r\n";
  if (!bytes_.empty() && !std::string_view("HTTP/1.").starts_with(std::string_view(bytes_).substr(0, 7)))
    return failed(HttpFailure::unreadable, "the answer is not HTTP");
  if (status_ == 0) {
    const std::size_t end = bytes_.find(kHeadEnd, at_);
    if (end == std::string::npos) {
      at_ = bytes_.size() - std::min(bytes_.size(), kHeadEnd.size() - 1);
      return failed(HttpFailure::closed, std::string(kClosed));
    }
    if (!read_head(end)) return failed(HttpFailure::unreadable, "the answer is not HTTP");
  }
  const std::size_t got = bytes_.size() - at_;
  const bool whole = chunked_ ? take_chunks() : length_ ? got >= *length_ : ended;
  if (!whole) return failed(HttpFailure::closed, std::string(kClosed));
  return {HttpFailure::none, {}, status_, chunked_ ? std::move(body_) : bytes_.substr(at_, length_.value_or(got))};
}

HttpAnswer parse_answer(std::string_view bytes, bool ended) {
  AnswerReader reader;
  reader.add(bytes);
  return reader.answer(ended);
}

namespace {

HttpAnswer exchange(const Url& url, std::string_view request, std::chrono::milliseconds limit) {
  const auto end = Clock::now() + limit;
  HttpAnswer failure;
  const Socket socket = connect_to(url, end, failure);
  if (socket.fd() < 0) return failure;
  const auto late = [&] {
    return failed(HttpFailure::too_late,
                  fmt::format("no whole answer within {} s", std::chrono::duration<double>(limit).count()));
  };
  if (!send_all(socket, request, end))
    return Clock::now() >= end ? late() : failed(HttpFailure::closed, std::string(kClosed));
  AnswerReader reader;
  std::size_t bytes = 0;
  char buffer[65536];
  for (;;) {
    const ssize_t got = recv(socket.fd(), buffer, sizeof buffer, 0);
    if (got == 0) return reader.answer(true);
    if (got > 0) {
      bytes += static_cast<std::size_t>(got);
      if (bytes > kMaxAnswer) return failed(HttpFailure::unreadable, "the answer is longer than 64 MiB");
      reader.add({buffer, static_cast<std::size_t>(got)});
      // A server may keep the connection open after its answer.
      if (HttpAnswer answer = reader.answer(false); answer.failure == HttpFailure::none) return answer;
    } else if (errno != EAGAIN && errno != EINTR) {
      return failed(HttpFailure::closed, std::string(kClosed));
    } else if (!wait_for(socket, POLLIN, end)) {
      return late();
    }
  }
}

// What each request has in its head.
std::string head(std::string_view method, const Url& url, std::string_view path) {
  return fmt::format("{} {}{} HTTP/1.1\r\nHost: {}:{}\r\nAccept: application/json\r\nConnection: close\r\n", method,
                     url.path, path, url.host, url.port);
}

}  // namespace

HttpAnswer post_json(const Url& url, std::string_view path, std::string_view body, std::chrono::milliseconds limit) {
  return exchange(url,
                  fmt::format("{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
                              head("POST", url, path), body.size(), body),
                  limit);
}

HttpAnswer get_json(const Url& url, std::string_view path, std::chrono::milliseconds limit) {
  return exchange(url, head("GET", url, path) + "\r\n", limit);
}

}  // namespace peft::cli
