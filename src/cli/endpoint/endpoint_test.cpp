// What a running server makes of an adapter: servers of tests/endpoint, each wrong in its own way.
#include "cli/endpoint/endpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "cli/endpoint/http.h"
#include "peft/error.h"
#include "test_paths.h"

namespace peft::cli {
namespace {

namespace fs = std::filesystem;

const std::string kFolder = std::string(PEFT_SOURCE_DIR) + "/tests/endpoint/";

// A server that runs as long as the object lives.
class Server {
 public:
  explicit Server(const std::string& mode) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    child_ = fork();
    if (child_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]), close(ends[1]);
      execlp("python3", "python3", (kFolder + "server.py").c_str(), mode.c_str(), nullptr);
      _exit(127);
    }
    close(ends[1]);
    for (char c = 0; read(ends[0], &c, 1) == 1 && c != '\n';) port_ += c;
    close(ends[0]);
  }
  ~Server() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  std::string url() const { return "http://127.0.0.1:" + port_ + "/v1/"; }

 private:
  pid_t child_ = 0;
  std::string port_;
};

class Endpoint : public ::testing::Test {
 protected:
  Endpoint() {
    std::string name = (fs::temp_directory_path() / "peft-endpoint-test-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    write(3);
    setenv("PEFT_TORCH", (kFolder + "peft_torch.py").c_str(), 1);
  }
  ~Endpoint() override {
    unsetenv("PEFT_TORCH");
    fs::remove_all(folder_);
  }
  void write(int rank) const {
    std::ofstream(folder_ + "/adapter_config.json")
        << R"({"peft_type": "LORA", "r": )" << rank << R"(, "lora_alpha": )" << 2 * rank << "}";
  }
  EndpointReport ask(const std::string& mode, double seconds = 30, const std::string& lora = "lora") const {
    const Server server(mode);
    EndpointOptions options;
    options.server = {server.url(), "base", lora, seconds};
    options.base = options.adapter = folder_;
    for (int i = 0; i < 17; ++i) options.ids.push_back((3 + 7 * i) % 29);
    return ask_server(options);
  }

  std::string folder_;
};

TEST_F(Endpoint, EveryWayToBeWrongHasAVerdict) {
  const std::pair<const char*, ServerVerdict> rows[] = {
      {"right", ServerVerdict::right},           {"chunks", ServerVerdict::right},
      {"no length", ServerVerdict::right},       {"vllm", ServerVerdict::right},
      {"coarse", ServerVerdict::right},          {"ignores", ServerVerdict::ignored},
      {"stronger", ServerVerdict::wrong_scale},  {"weaker", ServerVerdict::wrong_scale},
      {"turned", ServerVerdict::wrong_scale},    {"different", ServerVerdict::different},
      {"other base", ServerVerdict::other_base}, {"garbage", ServerVerdict::not_readable},
      {"no echo", ServerVerdict::not_readable},  {"unknown model", ServerVerdict::not_readable},
      {"closes", ServerVerdict::closed}};
  for (const auto& [mode, verdict] : rows) {
    const EndpointReport report = ask(mode);
    EXPECT_EQ(name(report.comparison.verdict), name(verdict)) << mode << ": " << report.what;
    EXPECT_FALSE(report.what.empty());
  }
}

// llama-server: a request for each token, adapters by their scale.
TEST_F(Endpoint, TheSameVerdictsOnALlamaServer) {
  const std::pair<const char*, ServerVerdict> rows[] = {{"llama right", ServerVerdict::right},
                                                        {"llama parts of characters", ServerVerdict::right},
                                                        {"llama ignores", ServerVerdict::ignored},
                                                        {"llama switched off", ServerVerdict::ignored},
                                                        {"llama stronger", ServerVerdict::wrong_scale},
                                                        {"llama weaker", ServerVerdict::wrong_scale},
                                                        {"llama twice as strong", ServerVerdict::wrong_scale},
                                                        {"llama different", ServerVerdict::different},
                                                        {"llama other base", ServerVerdict::other_base},
                                                        {"llama not loaded", ServerVerdict::not_readable},
                                                        {"llama two of a name", ServerVerdict::not_readable},
                                                        {"llama garbage", ServerVerdict::not_readable},
                                                        {"llama small context", ServerVerdict::not_readable},
                                                        {"llama more tokens", ServerVerdict::not_readable},
                                                        {"llama unforced", ServerVerdict::not_readable},
                                                        {"llama old", ServerVerdict::not_readable},
                                                        {"llama closes", ServerVerdict::closed}};
  for (const auto& [mode, verdict] : rows) {
    const EndpointReport report = ask(mode);
    EXPECT_EQ(name(report.comparison.verdict), name(verdict)) << mode << ": " << report.what;
    EXPECT_FALSE(report.what.empty());
  }
  EXPECT_EQ(ask("llama hangs", 0.5).comparison.verdict, ServerVerdict::too_late);
}

TEST_F(Endpoint, ALlamaServersAdapterIsNamedByItsFileOrNumber) {
  for (const char* lora : {"/models/lora.gguf", "lora.gguf", "lora", "1"})
    EXPECT_EQ(ask("llama right", 30, lora).comparison.verdict, ServerVerdict::right) << lora;
  EXPECT_EQ(ask("llama two of a name", 30, "1").comparison.verdict, ServerVerdict::right);
  for (const char* lora : {"", "2", "models/lora.gguf", "lor"}) {
    const EndpointReport report = ask("llama right", 30, lora);
    EXPECT_EQ(report.comparison.verdict, ServerVerdict::not_readable) << lora;
    EXPECT_NE(report.what.find("0: other/one.gguf, 1: /models/lora.gguf"), std::string::npos) << report.what;
  }
}

TEST_F(Endpoint, WhatALlamaServerSaysOfTheAdapterIsRepeated) {
  const EndpointReport report = ask("llama twice as strong");
  EXPECT_NEAR(report.comparison.factor, 2, 0.1);
  EXPECT_NE(report.what.find("/models/lora.gguf loaded with scale 2 "), std::string::npos) << report.what;
  EXPECT_LT(ask("llama parts of characters").tokens, 17U);
}

TEST_F(Endpoint, SaysByHowMuchTheScaleIsWrong) {
  EXPECT_NEAR(ask("stronger").comparison.factor, 2.5, 0.1);
  EXPECT_NEAR(ask("weaker").comparison.factor, 0.4, 0.05);
  EXPECT_NEAR(ask("turned").comparison.factor, -1, 0.1);
}

TEST_F(Endpoint, DoesNotWaitLongerThanItIsTold) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ask("hangs", 0.5).comparison.verdict, ServerVerdict::too_late);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST_F(Endpoint, AnAdapterThatDoesNotRunHereIsAnError) {
  write(13);
  try {
    ask("right");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::RT_PROGRAM);
    EXPECT_NE(std::string(error.what()).find("LO_RANK"), std::string::npos) << error.what();
  }
}

TEST_F(Endpoint, NoServerIsAnError) {
  EndpointOptions options;
  options.server = {"http://127.0.0.1:1/v1", "base", "lora", 30};
  options.base = options.adapter = folder_;
  options.ids = {1, 2, 3};
  try {
    ask_server(options);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::IO_OPEN);
  }
}

// Numbers that turn where a scale is far off: steps lead elsewhere, the scale of the likely ones is found.
TEST(Comparison, ALikelyScaleIsFoundWhereStepsGoAstray) {
  const auto at = [](double scale) {
    LogProbabilities values;
    for (int i = 0; i < 16; ++i) values.push_back(std::sin(1.3 * i + (2.1 + 0.4 * i) * scale) - 1.5);
    return values;
  };
  const Answers ours{at(0), at(1)};
  for (const double factor : {std::sqrt(8.0), 0.5, 2.0}) {
    const Comparison found = compare(ours, {at(0), at(factor)}, {std::sqrt(8.0), 2, 0.5}, at);
    EXPECT_EQ(name(found.verdict), "wrong scale") << factor;
    EXPECT_NEAR(found.factor, factor, 0.05);
  }
  EXPECT_EQ(name(compare(ours, {at(0), at(3.3)}, {2, 0.5}, at).verdict), "different");
  EXPECT_EQ(name(compare(ours, {at(0), at(2)}, {}, nullptr).verdict), "different");
  int asked = 0;
  compare(ours, {at(0), at(3.3)}, {2, 0.5}, [&](double scale) { return ++asked, at(scale); });
  EXPECT_LE(asked, 7);
}

TEST(Http, Addresses) {
  const Url url = parse_url("http://[::1]:8000/v1/");
  EXPECT_EQ(url.host + " " + url.port + " " + url.path, "::1 8000 /v1");
  EXPECT_EQ(parse_url("http://box").port, "80");
  for (const char* bad : {"", "box:8000", "https://box/v1", "http://", "http://:80", "http://a:b", "http://a:70000",
                          "http://a b/v1", "http://a/v1\r\nX: y"})
    EXPECT_THROW(parse_url(bad), Error) << bad;
}

TEST(Http, AnswersThatAreCutOrWrong) {
  const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
  EXPECT_EQ(parse_answer(head + "abcd", false).body, "abcd");
  EXPECT_EQ(parse_answer(head + "abc", true).failure, HttpFailure::closed);
  EXPECT_EQ(parse_answer("HTTP/1.1 200 OK\r\n\r\nall", true).body, "all");
  EXPECT_EQ(parse_answer("HTTP/1.1 200 OK\r\n\r\nall", false).failure, HttpFailure::closed);
  EXPECT_EQ(parse_answer("SSH-2.0-OpenSSH\r\n\r\n", true).failure, HttpFailure::unreadable);
  EXPECT_EQ(parse_answer("HTTP/1.1 two\r\n\r\n", true).failure, HttpFailure::unreadable);
  const std::string chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n";
  EXPECT_EQ(parse_answer(chunked + "3\r\nabc\r\n0\r\n\r\n", false).body, "abc");
  for (const char* body : {"3\r\nab", "zz\r\nabc\r\n0\r\n\r\n", "ffffffffffffffff\r\nabc", "3\r\nabc\r\n"})
    EXPECT_EQ(parse_answer(chunked + body, true).failure, HttpFailure::closed) << body;
  // However it is cut, the pieces are joined once.
  const std::string pieces = chunked + "3;x=y\r\nabc\r\nb\r\n0\r\n\r\ndefghi\r\n0\r\n\r\n";
  for (std::size_t step = 1; step < 9; ++step) {
    AnswerReader reader;
    HttpAnswer answer{HttpFailure::closed, {}, 0, {}};
    for (std::size_t i = 0; i < pieces.size() && answer.failure == HttpFailure::closed; i += step) {
      reader.add(std::string_view(pieces).substr(i, step));
      answer = reader.answer(false);
    }
    EXPECT_EQ(answer.body, "abc0\r\n\r\ndefghi") << step;
  }
  // Cut anywhere, it is no whole answer.
  const std::string whole = head + "abcd";
  for (std::size_t length = 0; length < whole.size(); ++length)
    EXPECT_NE(parse_answer(whole.substr(0, length), false).failure, HttpFailure::none) << length;
}

}  // namespace
}  // namespace peft::cli
