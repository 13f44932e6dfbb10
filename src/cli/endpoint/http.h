// One request to a server by HTTP/1.1, without encryption: for a program that runs on this machine or in this network.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace peft::cli {

struct Url {
  std::string host, port = "80", path;  // path: "/v1", without a slash at the end
};
// "http://127.0.0.1:8000/v1". Throws USAGE for anything else.
Url parse_url(const std::string& text);

// Why no answer came.
enum class HttpFailure : std::uint8_t {
  none,
  not_reached,  // no such host, or nothing listens there
  closed,       // the connection ended before the answer did
  too_late,     // the time was over
  unreadable,   // no HTTP, or more than the limit
};
struct HttpAnswer {
  HttpFailure failure = HttpFailure::none;
  std::string what;  // of a failure, in words
  int status = 0;
  std::string body;
};

inline constexpr std::size_t kMaxAnswer = std::size_t{64} << 20;  // bytes

// Sends `body` as JSON to a path below the URL's.
HttpAnswer post_json(const Url& url, std::string_view path, std::string_view body, std::chrono::milliseconds limit);
HttpAnswer get_json(const Url& url, std::string_view path, std::chrono::milliseconds limit);

// Takes an answer apart while it comes over the wire; what it has read it does not read again.
class AnswerReader {
 public:
  void add(std::string_view bytes) { bytes_ += bytes; }
  // `closed` where the answer is not whole. `ended`: the server closed the connection. Once the answer is whole,
  // nothing may be added or asked.
  HttpAnswer answer(bool ended);

 private:
  bool read_head(std::size_t end);
  bool take_chunks();

  std::string bytes_, body_;  // all that came; what is joined of a body in pieces
  std::size_t at_ = 0;        // where the head is still looked for; then where the body, or its next piece, begins
  int status_ = 0;            // 0: the head has not been read
  std::optional<std::size_t> length_;
  bool chunked_ = false;
};
HttpAnswer parse_answer(std::string_view bytes, bool ended);

}  // namespace peft::cli
