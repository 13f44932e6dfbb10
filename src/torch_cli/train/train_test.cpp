// peft train as a user runs it: golden/train through the command line, going on after a kill, bad input.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "peft/safetensors.h"
#include "support/golden.h"
#include "support/program.h"
#include "support/train_expectation.h"

extern char** environ;

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

std::string root(const std::string& path) { return (golden_root() / path).string(); }
ProgramResult peft(const Arguments& arguments) { return run_program(PEFT_PROGRAM, arguments); }

std::vector<std::string> names_of_cases() {
  std::vector<std::string> names;
  for (const Case& c : cases(golden_root(), "train")) names.push_back(c.folder.filename().string());
  return names;
}
std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

// The batches of a case as rows of token ids.
void write_rows(const Json& json, const std::string& file) {
  std::string text;
  for (const Json& batch : json["batches"]) {
    for (std::size_t row = 0; row < batch["input_ids"].size(); ++row) {
      const Json line = {{"input_ids", batch["input_ids"][row]},
                         {"labels", batch["labels"][row]},
                         {"attention_mask", batch["attention_mask"][row]}};
      text += line.dump() + "\n";
    }
  }
  write_file(file, text);
}

Arguments flags_of(const Json& json, const std::string& folder) {
  const Json& t = json["train"];
  const auto number = [](double value) { return fmt::format("{}", value); };
  const bool aux = t.value("output_router_logits", false);
  return {"train",
          "--base",
          root("models/" + json["model"].get<std::string>()),
          "--adapter",
          root("train/" + folder + "/adapter"),
          "--per-device-train-batch-size",
          "2",
          "--gradient-accumulation-steps",
          std::to_string(t["accumulate"].get<int>()),
          "--max-steps",
          std::to_string(t["steps"].get<int>()),
          "--learning-rate",
          number(t["lr"]),
          "--lr-scheduler-type",
          t["schedule"],
          "--warmup-steps",
          std::to_string(t["warmup_steps"].get<int>()),
          "--weight-decay",
          number(t["weight_decay"]),
          "--max-grad-norm",
          number(t["grad_clip_norm"]),
          "--router-aux-loss-coef",
          aux ? "0.02" : "0",
          "--loss-average",
          t.value("accumulate_by", "tokens") == "mean" ? "micro-batch" : "tokens",
          "--no-shuffle",
          "--logging-steps",
          "1",
          "--dtype",
          "F32",
          "--threads",
          "1"};
}

std::vector<Json> lines_of(const std::string& file) {
  std::vector<Json> lines;
  const std::string text = read_file(file);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    lines.push_back(Json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

double difference(const TensorFile& got, const TensorFile& wanted) {
  double largest = 0;
  EXPECT_EQ(got.tensors().size(), wanted.tensors().size());
  for (const TensorInfo& info : wanted.tensors()) {
    const TensorInfo* own = got.find(info.name);
    if (own == nullptr || !std::ranges::equal(own->shape, info.shape) || own->dtype != Dtype::f32) return HUGE_VAL;
    const auto a = got.bytes(*own), b = wanted.bytes(info);
    for (std::size_t i = 0; i < a.size(); i += sizeof(float)) {
      float x = 0, y = 0;
      std::memcpy(&x, a.data() + i, sizeof x), std::memcpy(&y, b.data() + i, sizeof y);
      largest = std::max(largest, std::fabs(double{x} - double{y}));
    }
  }
  return largest;
}

class Train : public ::testing::TestWithParam<std::string> {};

TEST_P(Train, gives_the_losses_and_tensors_of_peft) {
  const Json json = read_json(root("train/" + GetParam() + "/case.json"));
  const Json& tolerance = json["expect"]["tolerance"];
  const TemporaryFolder folder;
  write_rows(json, folder / "data.jsonl");
  Arguments arguments = flags_of(json, GetParam());
  for (const auto& more : {"--data", "data.jsonl", "--out", "out", "--metrics", "metrics.jsonl"}) {
    const bool path = more[0] != '-';
    arguments.push_back(path ? folder / more : std::string(more));
  }
  const auto result = peft(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto lines = lines_of(folder / "metrics.jsonl");
  ASSERT_EQ(lines.size(), json["expect"]["steps"].size());
  std::vector<double> grad_norms;
  for (const Json& line : lines) grad_norms.push_back(line["grad_norm"].get<double>());
  const test::TrainExpectation expected = test::train_expectation(json, GetParam(), grad_norms);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const Json& wanted = expected.expect["steps"][i];
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_NEAR(lines[i]["loss"].get<double>(), wanted["loss"].get<double>(), tolerance["loss"].get<double>());
    EXPECT_NEAR(lines[i]["grad_norm"].get<double>(), wanted["grad_norm"].get<double>(),
                tolerance["grad_norm"].get<double>());
    EXPECT_NEAR(lines[i]["learning_rate"].get<double>(), wanted["lr"].get<double>(), 1e-15);
  }
  const auto got = TensorFile::open(folder / "out/adapter_model.safetensors"),
             wanted = TensorFile::open(expected.final_tensors.string());
  EXPECT_LE(difference(*got, *wanted), expected.expect["tolerance"]["final_abs"].get<double>());
  const Json config = read_json(folder / "out/adapter_config.json");
  EXPECT_EQ(config["inference_mode"], true);
}
INSTANTIATE_TEST_SUITE_P(Golden, Train, ::testing::ValuesIn(names_of_cases()), test_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Train);

// A run of some steps on a tiny model of the golden data.
class TrainRuns : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(root("models/rt-qwen3_moe/config.json"))) GTEST_SKIP() << "not in this selection of golden data";
    std::string text;
    for (int row = 0; row < 12; ++row) {
      Json ids = Json::array();
      for (int i = 0; i < 5 + row % 7; ++i) ids.push_back((row * 13 + i * 7) % 50);
      text += Json{{"input_ids", ids}}.dump() + "\n";
    }
    write_file(data_, text);
    write_file(eval_data_, text);
  }
  Arguments arguments(const std::string& out, const Arguments& more = {}) const {
    Arguments result = {"train",
                        "--base",
                        root("models/rt-qwen3_moe"),
                        "--r",
                        "3",
                        "--target-modules",
                        "q_proj,v_proj",
                        "--target-parameters",
                        "mlp.experts.gate_up_proj,mlp.experts.down_proj",
                        "--lora-alpha",
                        "6",
                        "--data",
                        data_,
                        "--per-device-train-batch-size",
                        "2",
                        "--max-steps",
                        "20",
                        "--learning-rate",
                        "1e-2",
                        "--save-steps",
                        "2",
                        "--logging-steps",
                        "1",
                        "--threads",
                        "1",
                        "--out",
                        folder_ / out,
                        "--metrics",
                        folder_ / (out + ".jsonl")};
    for (std::size_t i = 0; i < more.size(); ++i) {  // a flag that is there already gets the other value
      const auto known = std::ranges::find(result, more[i]);
      if (known == result.end() || !more[i].starts_with("--"))
        result.push_back(more[i]);
      else
        *(known + 1) = more[++i];
    }
    return result;
  }
  std::string adapter(const std::string& out) const {
    return read_file(folder_ / (out + "/adapter_model.safetensors"));
  }
  std::string error(const Arguments& more, int code) const {
    const auto result = peft(arguments("bad", more));
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_FALSE(fs::exists(folder_ / "bad"));
    return result.err;
  }
  // `variables`: "NAME=value", before those that this test has.
  pid_t start(const Arguments& given, const Arguments& variables = {}) const {
    std::vector<char*> environment;
    for (const auto& variable : variables) environment.push_back(const_cast<char*>(variable.c_str()));
    for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    std::vector<char*> argv{const_cast<char*>(PEFT_PROGRAM)};
    for (const auto& argument : given) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int stream : {1, 2})
      posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", 1 /* O_WRONLY */, 0);
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, PEFT_PROGRAM, &actions, nullptr, argv.data(), environment.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  // Processes that train together, as torchrun starts them. Their exit codes.
  std::vector<int> run_together(const std::vector<Arguments>& ranks) const {
    const std::string port = std::to_string(free_port());
    std::vector<pid_t> processes;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      processes.push_back(start(
          ranks[rank], {"RANK=" + std::to_string(rank), "LOCAL_RANK=" + std::to_string(rank),
                        "WORLD_SIZE=" + std::to_string(ranks.size()), "MASTER_ADDR=127.0.0.1", "MASTER_PORT=" + port}));
    }
    std::vector<int> codes;
    for (const pid_t process : processes) codes.push_back(exit_code_of(process));
    return codes;
  }
  static int free_port() {
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET, address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(socket, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size), 0);
    close(socket);
    return ntohs(address.sin_port);
  }
  static int exit_code_of(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  void wait_for(const std::string& path) const {
    for (int i = 0; i < 6000 && !fs::exists(path); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_TRUE(fs::exists(path)) << path;
  }
  TemporaryFolder folder_;
  std::string data_ = folder_ / "rows.jsonl", eval_data_ = folder_ / "eval.jsonl";
};

TEST_F(TrainRuns, a_stopped_run_goes_on_to_the_same_bytes) {
  ASSERT_EQ(peft(arguments("whole")).exit_code, 0);
  const auto stopped = peft(arguments("parts", {"--stop-after-steps", "7"}));
  ASSERT_EQ(stopped.exit_code, 0) << stopped.err;
  EXPECT_TRUE(fs::exists(folder_ / "parts/checkpoint-7/trainer_state.json"));
  EXPECT_FALSE(fs::exists(folder_ / "parts/adapter_model.safetensors"));
  EXPECT_THAT(peft(arguments("parts")).err, HasSubstr("OUT_EXISTS"));
  const auto result = peft(arguments("parts", {"--resume"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(adapter("parts"), adapter("whole"));
  const auto whole = lines_of(folder_ / "whole.jsonl"), parts = lines_of(folder_ / "parts.jsonl");
  ASSERT_EQ(parts.size(), whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(parts[i]["loss"], whole[i]["loss"]);
}

// Killed at 50 moments that have nothing to do with what it does. A run that came to its end begins anew.
TEST_F(TrainRuns, a_killed_run_goes_on_to_the_same_bytes) {
  using Clock = std::chrono::steady_clock;
  const auto start_of_whole = Clock::now();
  ASSERT_EQ(peft(arguments("whole")).exit_code, 0);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_of_whole);
  const std::string wanted = adapter("whole");
  std::mt19937 random(7);
  const Arguments flags = arguments("killed", {"--resume"});
  for (int i = 0; i < 50; ++i) {
    const pid_t pid = start(flags);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<std::uint64_t>(whole.count())));
    kill(pid, SIGKILL);
    if (exit_code_of(pid) != 0) continue;
    ASSERT_EQ(adapter("killed"), wanted) << i;
    fs::remove_all(folder_ / "killed");
    fs::remove(folder_ / "killed.jsonl");
  }
  const auto result = peft(flags);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(adapter("killed"), wanted);
}

TEST_F(TrainRuns, an_interrupt_saves_and_ends_with_5) {
  ASSERT_EQ(peft(arguments("whole", {"--max-steps", "200", "--save-steps", "0"})).exit_code, 0);
  const Arguments flags = arguments("cut", {"--max-steps", "200", "--save-steps", "0"});
  const pid_t pid = start(flags);
  wait_for(folder_ / "cut.jsonl");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  kill(pid, SIGINT);
  EXPECT_EQ(exit_code_of(pid), 5);
  Arguments again = flags;
  again.emplace_back("--resume");
  ASSERT_EQ(peft(again).exit_code, 0);
  EXPECT_EQ(adapter("cut"), adapter("whole"));
}

// Three micro batches are a step of the one process; the two have two each, so that the last round has a rank without
// one. Evaluations and what --resume goes on with are shared, too.
TEST_F(TrainRuns, processes_give_the_bytes_of_one_with_their_micro_batches) {
  const Arguments eval = {"--eval-data", eval_data_, "--eval-steps", "4"};
  const auto with = [&](const std::string& out, const Arguments& more) {
    Arguments all = eval;
    all.insert(all.end(), more.begin(), more.end());
    return arguments(out, all);
  };
  const auto one = peft(with("one", {"--gradient-accumulation-steps", "4"}));
  ASSERT_EQ(one.exit_code, 0) << one.err;
  const Arguments stopped = with("two", {"--gradient-accumulation-steps", "2", "--stop-after-steps", "5"});
  ASSERT_EQ(run_together({stopped, stopped}), (std::vector<int>{0, 0}));
  const Arguments on = with("two", {"--gradient-accumulation-steps", "2", "--resume"});
  ASSERT_EQ(run_together({on, on}), (std::vector<int>{0, 0}));
  EXPECT_EQ(adapter("two"), adapter("one"));
  const auto wanted = lines_of(folder_ / "one.jsonl"), got = lines_of(folder_ / "two.jsonl");
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    for (const char* name : {"loss", "grad_norm", "num_tokens", "entropy", "eval_loss"})
      EXPECT_EQ(got[i].value(name, Json()), wanted[i].value(name, Json())) << name << " " << wanted[i];
  }
}

TEST_F(TrainRuns, processes_with_unequal_runs_all_fail) {
  const auto codes = run_together({arguments("two"), arguments("two", {"--learning-rate", "1e-3"})});
  EXPECT_EQ(codes, (std::vector<int>{3, 3}));
  EXPECT_FALSE(fs::exists(folder_ / "two/adapter_model.safetensors"));
}

TEST_F(TrainRuns, variables_of_several_processes_must_fit_together) {
  const pid_t process = start(arguments("bad"), {"WORLD_SIZE=2", "RANK=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=1"});
  EXPECT_EQ(exit_code_of(process), 2);
  EXPECT_FALSE(fs::exists(folder_ / "bad"));
}

TEST_F(TrainRuns, the_same_on_any_way_of_keeping_activations) {
  ASSERT_EQ(peft(arguments("again")).exit_code, 0);
  ASSERT_EQ(peft(arguments("kept", {"--no-gradient-checkpointing"})).exit_code, 0);
  EXPECT_EQ(adapter("again"), adapter("kept"));
}

TEST_F(TrainRuns, a_dry_run_tells_what_is_trained_and_writes_nothing) {
  const auto result = peft(arguments("dry", {"--dry-run", "--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["max_steps"], 20);
  EXPECT_EQ(json["data"]["rows"], 12);
  EXPECT_EQ(json["layers_with_experts"], json["layers_with_trained_experts"]);
  EXPECT_FALSE(fs::exists(folder_ / "dry"));
}

TEST_F(TrainRuns, the_report_shows_losses_experts_and_answers) {
  const auto result = peft(arguments("told", {"--report", folder_ / "report.html", "--eval-data", eval_data_}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string page = read_file(folder_ / "report.html");
  for (const char* part :
       {"Training report", "class=line0", "class=line1", "layer 1, expert 3: ", "experts.down", "Before and after"})
    EXPECT_THAT(page, HasSubstr(part));
  EXPECT_EQ(page.find("{{"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(peft(arguments("more", {"--report", folder_ / "no/report.html"})).exit_code, 3);
  EXPECT_FALSE(fs::exists(folder_ / "more"));
}

TEST_F(TrainRuns, bad_input_is_one_error_before_the_first_step) {
  EXPECT_THAT(error({"--data", folder_ / "none.jsonl"}, 3), HasSubstr("none.jsonl"));
  write_file(folder_ / "empty.jsonl", "");
  EXPECT_THAT(error({"--data", folder_ / "empty.jsonl"}, 1), HasSubstr("no rows"));
  write_file(folder_ / "ids.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 999999]}\n");
  EXPECT_THAT(error({"--data", folder_ / "ids.jsonl"}, 1), HasSubstr("ids.jsonl:2"));
  EXPECT_THAT(error({"--target-modules", "nothing_proj"}, 1), HasSubstr("nothing_proj"));
  EXPECT_THAT(error({"--max-steps", "-1"}, 2), HasSubstr("max_steps"));
  EXPECT_THAT(error({"--lr-scheduler-type", "polynomial"}, 2), HasSubstr("cosine"));
}

TEST_F(TrainRuns, a_checkpoint_of_another_run_or_data_is_refused) {
  ASSERT_EQ(peft(arguments("run", {"--stop-after-steps", "2"})).exit_code, 0);
  EXPECT_THAT(peft(arguments("run", {"--resume", "--learning-rate", "2e-2"})).err, HasSubstr("learning_rate"));
  write_file(data_, read_file(data_) + "{\"input_ids\": [1, 2]}\n");
  const auto result = peft(arguments("run", {"--resume"}));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("another run"));
}

TEST_F(TrainRuns, experts_that_would_be_missed_are_an_error) {
  if (!fs::exists(root("models/rt-qwen3_5_moe_text/config.json"))) GTEST_SKIP();
  const Arguments flags = {"train",
                           "--base",
                           root("models/rt-qwen3_5_moe_text"),
                           "--r",
                           "2",
                           "--target-modules",
                           "gate_proj,up_proj,down_proj",
                           "--data",
                           data_,
                           "--out",
                           folder_ / "missed",
                           "--dry-run"};
  const auto refused = peft(flags);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("--target-parameters"));
  EXPECT_THAT(refused.err, HasSubstr("--without-experts"));
  Arguments anyway = flags;
  anyway.emplace_back("--without-experts");
  EXPECT_EQ(peft(anyway).exit_code, 0);
}

}  // namespace
}  // namespace peft::testing
