// The program as a user runs it: exit codes, JSON, what is left on disk.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "test_paths.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

const fs::path kGolden = fs::path(PEFT_SOURCE_DIR) / "tests/golden";
const std::string kV4 = (kGolden / "convert/mixtral-plain/adapter").string();
const std::string kV4Too = (kGolden / "convert/qwen3_moe-plain/adapter").string();
const std::string kOther = (kGolden / "convert/mixtral-rslora/adapter").string();
const std::string kModel = (kGolden / "models/mixtral-v4").string();

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

struct Result {
  int exit_code = -1;
  int signal = 0;
  std::string out, err;
  json parsed() const { return json::parse(out); }
};

// Temporary folder of one test.
class Cli : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "peft-cli-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string in(const std::string& name) const { return (folder_ / name).string(); }

  Result peft(std::vector<std::string> arguments, const std::string& stdout_file = {}) const {
    const std::string out = stdout_file.empty() ? in("stdout") : stdout_file;
    const std::string err = in("stderr");
    std::vector<char*> argv{const_cast<char*>(PEFT_PROGRAM)};
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
      dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
      execv(PEFT_PROGRAM, argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    Result result;
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    if (stdout_file.empty()) result.out = read_text(out);
    result.err = read_text(err);
    return result;
  }

  fs::path folder_;
};

std::size_t count_lines(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST_F(Cli, there_and_back_gives_the_same_file) {
  Result result = peft({"convert", kV4, "--to", "peft-fused", "--out", in("v5"), "--base", kModel});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("peft-per-expert -> peft-fused"));
  EXPECT_EQ(result.err.find('\x1b'), std::string::npos) << "no colours, no bar without a terminal";

  result = peft({"verify", kV4, in("v5"), "--base", kModel});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_THAT(result.out, HasSubstr("same function"));

  result = peft({"convert", in("v5"), "--to", "peft-per-expert", "--out", in("v4"), "--base", kModel});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(read_text(fs::path(kV4) / "adapter_model.safetensors"),
            read_text(fs::path(in("v4")) / "adapter_model.safetensors"));
}

TEST_F(Cli, different_adapters_are_exit_1_and_bad_ones_2) {
  Result result = peft({"verify", kV4, kOther, "--base", kModel, "--json"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.parsed()["same"], false);
  EXPECT_GT(result.parsed()["differences"].size(), 0u);

  fs::create_directory(in("bad"));
  fs::copy_file(fs::path(kV4) / "adapter_config.json", fs::path(in("bad")) / "adapter_config.json");
  std::ofstream(fs::path(in("bad")) / "adapter_model.safetensors") << "short";
  result = peft({"verify", kV4, in("bad"), "--base", kModel});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.err.rfind("error[ST_SHORT]", 0), 0u) << result.err;
  EXPECT_EQ(count_lines(result.err), 1u);
  EXPECT_EQ(peft({"convert", in("bad"), "--to", "peft-fused", "--out", in("o")}).exit_code, 1);
  EXPECT_FALSE(fs::exists(in("o")));
}

TEST_F(Cli, errors_are_json_on_stdout_when_asked) {
  const Result result = peft({"inspect", in("nowhere"), "--json"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.err, "");
  const json error = result.parsed()["error"];
  EXPECT_EQ(error["code"], "IO_OPEN");
  for (const char* field : {"code", "file", "tensor", "problem", "expected", "got", "hint"})
    EXPECT_TRUE(error.contains(field)) << field;
}

TEST_F(Cli, usage_errors_are_exit_2) {
  EXPECT_EQ(peft({"convert"}).exit_code, 2);
  EXPECT_EQ(peft({"nonsense"}).exit_code, 2);
  EXPECT_EQ(peft({"convert", kV4, "--to", "peft-fusd", "--out", in("o")}).exit_code, 2);
  EXPECT_EQ(peft({"convert", kV4, "--to", "peft-fused"}).exit_code, 2) << "no --out";
  const Result result = peft({"convert", "--json"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.parsed()["error"]["code"], "USAGE");
}

TEST_F(Cli, dry_run_writes_nothing) {
  Result result = peft({"convert", kV4, "--to", "peft-fused", "--out", in("o"), "--base", kModel, "--dry-run"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(fs::exists(in("o")));
  EXPECT_THAT(result.out, HasSubstr("adapter_model.safetensors"));
  result = peft({"convert", kV4, "--to", "peft-fused", "--base", kModel, "--dry-run", "--json"});
  const json plan = result.parsed()["plan"];
  EXPECT_EQ(plan["files"][0]["name"], "adapter_model.safetensors");
  EXPECT_GT(plan["bytes_out"], 0);
  EXPECT_EQ(plan["texts"], json::array({"adapter_config.json"}));
}

TEST_F(Cli, an_output_that_exists_stays_unless_told) {
  fs::create_directory(in("o"));
  std::ofstream(fs::path(in("o")) / "mine") << "text";
  EXPECT_EQ(peft({"convert", kV4, "--to", "peft-fused", "--out", in("o"), "--base", kModel}).exit_code, 2);
  EXPECT_EQ(read_text(fs::path(in("o")) / "mine"), "text");
  const Result result = peft({"convert", kV4, "--to", "peft-fused", "--out", in("o"), "--base", kModel, "--overwrite"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(fs::exists(fs::path(in("o")) / "mine"));
}

TEST_F(Cli, several_folders_go_side_by_side_and_one_failure_stops_no_other) {
  fs::create_directory(in("first"));
  fs::create_directory(in("second"));
  fs::copy(kV4, in("first"));
  fs::copy(kV4Too, in("second"));
  Result result = peft({"convert", in("first"), in("missing"), in("second"), "--to", "peft-fused", "--out", in("o")});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_TRUE(fs::exists(in("o/first/adapter_model.safetensors"))) << result.out << result.err;
  EXPECT_TRUE(fs::exists(in("o/second/adapter_model.safetensors")));
  EXPECT_FALSE(fs::exists(in("o/missing")));
  EXPECT_EQ(count_lines(result.out), 4u) << result.out;
  EXPECT_THAT(result.out, HasSubstr("failed: IO_OPEN"));

  result = peft({"convert", in("first"), in("missing"), "--to", "peft-fused", "--out", in("o2"), "--json"});
  const json conversions = result.parsed()["conversions"];
  ASSERT_EQ(conversions.size(), 2u);
  EXPECT_EQ(conversions[0]["from"], "peft-per-expert");
  EXPECT_EQ(conversions[1]["error"]["code"], "IO_OPEN");

  result = peft({"convert", in("first"), in("first") + "/", "--to", "peft-fused", "--out", in("o3")});
  EXPECT_EQ(result.exit_code, 2) << "two outputs of one name";
}

TEST_F(Cli, all_adapters_of_a_folder_are_converted_together) {
  fs::create_directory(in("many"));
  fs::copy(kV4, in("many"));
  fs::create_directory(in("many/second"));
  fs::copy(kOther, in("many/second"));
  Result result = peft({"convert", in("many"), "--to", "peft-fused", "--out", in("o"), "--base", kModel, "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.out;
  EXPECT_EQ(result.parsed()["adapter_names"], json::array({"default", "second"}));
  EXPECT_EQ(peft({"verify", kV4, in("o"), "--base", kModel}).exit_code, 0);
  EXPECT_EQ(peft({"verify", kOther, in("o/second"), "--base", kModel}).exit_code, 0);

  result = peft(
      {"convert", in("many"), "--to", "peft-fused", "--out", in("one"), "--base", kModel, "--adapter-name", "second"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(peft({"verify", kOther, in("one"), "--base", kModel}).exit_code, 0);
  EXPECT_FALSE(fs::exists(in("one/second")));

  std::ofstream(in("many/second/adapter_model.safetensors")) << "broken";
  EXPECT_NE(peft({"convert", in("many"), "--to", "peft-fused", "--out", in("none"), "--base", kModel}).exit_code, 0);
  EXPECT_FALSE(fs::exists(in("none"))) << "one bad adapter, no output";
}

TEST_F(Cli, config_only_prints_a_diff_and_writes_the_config) {
  const std::string config = kV4 + "/adapter_config.json";
  Result result = peft({"convert", config, "--to", "peft-fused", "--config-only", "--base", kModel, "--out", in("o")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("target_parameters"));
  const json written = json::parse(read_text(in("o/adapter_config.json")));
  EXPECT_TRUE(written["target_parameters"].is_array());
  EXPECT_FALSE(fs::exists(in("o/adapter_model.safetensors")));
}

TEST_F(Cli, inspect_says_what_the_file_is) {
  Result result = peft({"inspect", kV4, "--base", kModel});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("peft-per-expert"));
  result = peft({"inspect", kV4, "--base", kModel, "--json"});
  const json report = result.parsed();
  EXPECT_EQ(report["layout"], "peft-per-expert");
  EXPECT_EQ(report["model_type"], "mixtral");
  EXPECT_GT(report["consumers"].size(), 2u);
  EXPECT_EQ(report["error"], "");
}

TEST_F(Cli, doctor_gives_a_verdict_an_exit_code_and_the_command_that_mends) {
  const std::string fused = (kGolden / "consumers/mixtral/fused/adapter").string();
  const std::string base = (kGolden / "models/consumer-mixtral").string();
  Result result = peft({"doctor", fused, "--base", base});
  EXPECT_EQ(result.exit_code, 0) << "without --for: " << result.err;
  EXPECT_THAT(result.out, HasSubstr("SGLang"));
  result = peft({"doctor", fused, "--for", "peft", "--base", base});
  EXPECT_EQ(result.exit_code, 0) << result.out;
  result = peft({"doctor", fused, "--for", "vllm@0.33", "--base", base, "--json"});
  EXPECT_EQ(result.exit_code, 1);
  const json engine = result.parsed()["engines"][0];
  EXPECT_EQ(engine["answer"], "silently wrong");
  EXPECT_EQ(engine["mend"], "peft convert " + fused + " --for vllm@0.33 --base " + base + " --out " + fused + "-vllm");
  EXPECT_EQ(peft({"doctor", in("nothing"), "--for", "vllm"}).exit_code, 2) << "a bad input";
  EXPECT_EQ(peft({"doctor", fused, "--for", "gcc"}).exit_code, 2);
  const Result mended = peft({"convert", fused, "--for", "vllm", "--base", base, "--out", in("ok")});
  ASSERT_EQ(mended.exit_code, 0) << mended.err;
  EXPECT_THAT(mended.out,
              HasSubstr("vllm serve " + base + " --enable-lora --max-lora-rank 8 --lora-modules lora=" + in("ok")));
  EXPECT_EQ(peft({"doctor", in("ok"), "--for", "vllm", "--base", base}).exit_code, 0);
  EXPECT_EQ(peft({"verify", fused, in("ok"), "--base", base}).exit_code, 0);
  EXPECT_EQ(peft({"convert", fused, "--base", base, "--out", in("no")}).exit_code, 2) << "neither --to nor --for";
  // llama.cpp takes no folder: what it reads right by its converter is converted first.
  const std::string v4 = (kGolden / "consumers/mixtral/perexpert/adapter").string();
  result = peft({"doctor", v4, "--for", "llama.cpp", "--base", base});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("--out " + v4 + ".gguf\n  llama-server -m BASE.gguf --lora " + v4 + ".gguf\n"));
}

TEST_F(Cli, engines_are_listed_and_readme_has_their_table) {
  EXPECT_THAT(peft({"engines"}).out, HasSubstr("vllm"));
  const json engines = peft({"engines", "llama.cpp", "--json"}).parsed()["engines"];
  ASSERT_EQ(engines.size(), 1u);
  EXPECT_GT(engines[0]["rules"].size(), 5u);
  EXPECT_THAT(read_text(fs::path(PEFT_SOURCE_DIR) / "README.md"), HasSubstr(peft({"docs", "readme"}).out))
      << "make docs brings it up to date";
}

TEST_F(Cli, targets_lists_modules) {
  const Result result = peft({"targets", kV4, "--base", kModel, "--generation", "v4", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.out;
  const json report = result.parsed();
  EXPECT_EQ(report["generation"], "v4");
  EXPECT_EQ(report["targets"].size(), 2u * (2 + 12 * 3)) << "2 layers: q_proj, v_proj and 12 experts with w1, w2, w3";
  EXPECT_EQ(report["targets"][0]["rank"], 3);
}

TEST_F(Cli, tables_are_json_too) {
  const json layouts = peft({"layouts", "--json"}).parsed()["layouts"];
  EXPECT_EQ(layouts.size(), 13u);
  EXPECT_EQ(layouts[0]["name"], "peft-per-expert");
  const json families = peft({"families", "--json"}).parsed()["families"];
  EXPECT_TRUE(
      std::any_of(families.begin(), families.end(), [](const json& row) { return row["model_type"] == "qwen3_moe"; }));
}

TEST_F(Cli, a_full_device_is_an_error_and_a_closed_pipe_is_not) {
  EXPECT_EQ(peft({"layouts"}, "/dev/full").exit_code, 3);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  const std::string descriptor = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(ends[1]);
  const Result result = peft({"layouts"}, descriptor);
  close(ends[1]);
  EXPECT_EQ(result.signal, 0);
}

TEST_F(Cli, completion_scripts_are_accepted_by_bash) {
  const Result result = peft({"completion", "bash"});
  ASSERT_EQ(result.exit_code, 0);
  std::ofstream(in("completion.bash")) << result.out;
  const std::string command = "bash -c 'source " + in("completion.bash") +
                              "; COMP_WORDS=(peft convert a --to peft-fused-0); COMP_CWORD=4; _peft; "
                              "[ \"${COMPREPLY[*]}\" = \"peft-fused-0.19.0 peft-fused-0.18\" ]'";
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_THAT(peft({"completion", "zsh"}).out, HasSubstr("#compdef peft"));
  EXPECT_THAT(peft({"completion", "fish"}).out, HasSubstr("complete -c peft"));
}

// What runs models is another program. Without it there is one error that says so; with it, it gets the command line.
TEST_F(Cli, verbs_that_run_models_are_handed_over) {
  const std::vector<std::string> line = {"logits", "--base", "a folder", "--ids", "1,2;3,4"};
  setenv("PEFT_TORCH", in("nothing").c_str(), 1);
  const Result missing = peft(line);
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.err, HasSubstr("peft-torch"));
  EXPECT_EQ(count_lines(missing.err), 1u);

  std::ofstream(in("program")) << "#!/bin/sh\nfor word in \"$@\"; do echo \"$word\"; done\nexit 7\n";
  fs::permissions(in("program"), fs::perms::owner_all);
  setenv("PEFT_TORCH", in("program").c_str(), 1);
  const Result handed = peft(line);
  EXPECT_EQ(handed.exit_code, 7);
  EXPECT_EQ(handed.out, "logits\n--base\na folder\n--ids\n1,2;3,4\n");
  EXPECT_EQ(peft({"generate", "--base", "m", "--max-new-tokens", "3"}).exit_code, 2);  // no ids: nothing is started
  unsetenv("PEFT_TORCH");
}

// Every flag of every verb is in docs/cli.md, and no flag there that the program does not have.
TEST_F(Cli, the_manual_names_all_flags) {
  const std::string manual = read_text(fs::path(PEFT_SOURCE_DIR) / "docs/cli.md");
  const std::regex flag_pattern("--[a-z][a-z-]+");
  const auto flags_in = [&](const std::string& text) {
    return std::set<std::string>(std::sregex_token_iterator(text.begin(), text.end(), flag_pattern),
                                 std::sregex_token_iterator());
  };
  std::set<std::string> known{"--version"};
  for (const std::string verb :
       {"inspect", "doctor", "targets", "convert", "verify", "merge", "combine", "resize", "extract", "logits",
        "generate", "params", "train", "engines", "layouts", "families", "completion"}) {
    EXPECT_THAT(manual, HasSubstr("peft " + verb));
    const Result help = peft({verb, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    known.merge(flags_in(help.out));
  }
  const auto documented = flags_in(manual);
  for (const auto& flag : known) {
    const bool found = documented.count(flag) != 0 || flag == "--version";
    EXPECT_TRUE(found) << flag << " is not in docs/cli.md";
  }
  for (const auto& flag : documented) EXPECT_TRUE(known.count(flag)) << flag << " in docs/cli.md does not exist";
}

// ---- links in a folder, and what --ignore-unused leaves out

std::string without_a_link(const std::string& from, const std::string& to) {
  fs::copy(from, to, fs::copy_options::recursive);
  for (const auto& entry : fs::recursive_directory_iterator(to)) fs::permissions(entry.path(), fs::perms::owner_all);
  return to;
}

TEST_F(Cli, a_side_file_that_is_a_link_out_of_its_folder_is_refused_by_name) {
  const std::string adapter = without_a_link(kV4, in("a")),
                    base = without_a_link((kGolden / "models/rt-llama").string(), in("base"));
  const std::string plain = (kGolden / "runtime/llama/adapter").string();
  std::ofstream(in("secret")) << "secret";
  fs::remove(in("a/README.md"));
  fs::create_symlink(in("secret"), in("a/README.md"));
  fs::create_symlink("../secret", in("base/tokenizer_config.json"));
  const std::vector<std::vector<std::string>> commands = {
      {"convert", adapter, "--to", "peft-fused", "--base", kModel},
      {"combine", adapter + "@0.5", adapter + "@0.5", "--type", "cat", "--base", kModel},
      {"resize", adapter, "--rank", "1", "--base", kModel},
      {"merge", "--base", base, "--adapter", plain}};
  for (auto command : commands) {
    command.insert(command.end(), {"--out", in("out"), "--json"});
    const Result refused = peft(command);
    ASSERT_EQ(refused.exit_code, 1) << command[0] << refused.out << refused.err;
    EXPECT_EQ(refused.parsed()["error"]["code"], "IX_LINK") << command[0];
    EXPECT_THAT(refused.out, HasSubstr(command[0] == "merge" ? "tokenizer_config.json" : "README.md"));
    EXPECT_FALSE(fs::exists(in("out")));
    command.push_back("--follow-symlinks");
    const Result followed = peft(command);
    EXPECT_EQ(followed.exit_code, 0) << command[0] << followed.out << followed.err;
    EXPECT_EQ(read_text(in(command[0] == "merge" ? "out/tokenizer_config.json" : "out/README.md")), "secret");
    EXPECT_FALSE(fs::is_symlink(in(command[0] == "merge" ? "out/tokenizer_config.json" : "out/README.md")));
    fs::remove_all(in("out"));
  }
}

TEST_F(Cli, links_within_a_folder_and_to_the_blobs_of_a_cache_are_followed) {
  const std::string snapshot = in("hub/models--me--lora/snapshots/0123");
  fs::create_directories(in("hub/models--me--lora/blobs"));
  fs::create_directories(fs::path(snapshot).parent_path());
  without_a_link(kV4, snapshot);
  fs::remove(snapshot + "/README.md");
  std::ofstream(in("hub/models--me--lora/blobs/abc")) << "card";
  fs::create_symlink("../../blobs/abc", snapshot + "/README.md");
  fs::create_symlink("README.md", snapshot + "/LICENSE");
  const std::vector<std::string> command = {"convert", snapshot, "--to",  "peft-fused",
                                            "--base",  kModel,   "--out", in("out")};
  const Result done = peft(command);
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(read_text(in("out/README.md")), "card");
  EXPECT_EQ(read_text(in("out/LICENSE")), "card");

  // Another repository's blobs are another folder; a link that leads nowhere is named.
  fs::create_directories(in("hub/models--you--lora/blobs"));
  std::ofstream(in("hub/models--you--lora/blobs/abc")) << "other";
  fs::remove(snapshot + "/README.md");
  fs::create_symlink("../../../models--you--lora/blobs/abc", snapshot + "/README.md");
  fs::remove_all(in("out"));
  EXPECT_THAT(peft(command).err, HasSubstr("IX_LINK"));
  fs::remove(snapshot + "/README.md");
  fs::remove(snapshot + "/LICENSE");
  fs::create_symlink("nowhere", snapshot + "/README.md");
  const Result dangling = peft(command);
  EXPECT_EQ(dangling.exit_code, 3) << dangling.err;
  EXPECT_THAT(dangling.err, HasSubstr("README.md"));
  EXPECT_FALSE(fs::exists(in("out")));
}

TEST_F(Cli, a_side_file_that_is_no_file_is_refused_by_name_and_never_waited_for) {
  const std::string adapter = without_a_link(kV4, in("a"));
  const std::vector<std::string> command = {"convert", adapter, "--to",    "peft-fused", "--base",
                                            kModel,    "--out", in("out"), "--json"};
  fs::remove(in("a/README.md"));
  ASSERT_EQ(mkfifo(in("a/README.md").c_str(), 0600), 0);
  for (const char* kind : {"pipe", "folder"}) {
    const Result result = peft(command);
    EXPECT_EQ(result.exit_code, 1) << kind << result.out;
    EXPECT_EQ(result.parsed()["error"]["code"], "IO_KIND") << kind;
    EXPECT_THAT(result.out, HasSubstr("README.md")) << kind;
    EXPECT_FALSE(fs::exists(in("out"))) << kind;
    fs::remove(in("a/README.md"));
    fs::create_directory(in("a/README.md"));
  }
}

// A tensor of a module that the model does not have, in a copy of an adapter of another model.
TEST_F(Cli, what_ignore_unused_leaves_out_is_named_by_every_verb) {
  const std::string heads = (fs::path(PEFT_SOURCE_DIR) / "tests/heads").string();
  const std::string adapter = without_a_link(heads + "/llama-seq-cls", in("a"));
  json config = json::parse(read_text(in("a/adapter_config.json")));
  config["task_type"] = "CAUSAL_LM";  // now nothing says that `score` is saved
  std::ofstream(in("a/adapter_config.json")) << config.dump();
  const std::string base = heads + "/llama";
  const Result refused = peft({"convert", adapter, "--to", "peft-fused", "--base", base, "--out", in("no"), "--json"});
  EXPECT_EQ(refused.parsed()["error"]["code"], "LO_UNUSED") << refused.out;
  const std::vector<std::vector<std::string>> commands = {
      {"convert", adapter, "--to", "peft-fused", "--base", base, "--out", in("c")},
      {"combine", adapter + "@0.5", adapter + "@0.5", "--type", "cat", "--base", base, "--out", in("d")},
      {"resize", adapter, "--rank", "1", "--base", base, "--out", in("e")},
      {"merge", "--base", base, "--adapter", adapter, "--out", in("f")},
      {"verify", adapter, adapter, "--base", base}};
  for (auto command : commands) {
    command.push_back("--ignore-unused");
    command.push_back("--json");
    const Result result = peft(command);
    ASSERT_EQ(result.exit_code, 0) << command[0] << result.out << result.err;
    const json parsed = result.parsed();
    const json& named = parsed[command[0] == "verify" ? "left_out" : "unused"];
    ASSERT_FALSE(named.empty()) << command[0] << result.out;
    EXPECT_THAT(named[0].get<std::string>(), HasSubstr("score.weight"));
    if (command[0] != "verify") {
      EXPECT_THAT(parsed["warnings"].dump(), HasSubstr("score.weight")) << command[0];
    }
  }
  const Result text = peft({"verify", adapter, adapter, "--base", base, "--ignore-unused"});
  EXPECT_THAT(text.out, HasSubstr("same function but for 2 tensors left out"));
}

TEST_F(Cli, a_dense_adapter_is_called_dense) {
  const std::string adapter = (kGolden / "native/llama-linear-p0212/adapter").string();
  const Result text = peft({"convert", adapter, "--to", "peft-per-expert", "--out", in("out")});
  EXPECT_THAT(text.out, HasSubstr("dense LoRA, the same in every PEFT layout")) << text.err;
  EXPECT_THAT(text.out, testing::Not(HasSubstr("peft-fused"))) << text.out;
  const Result keys = peft({"inspect", (fs::path(PEFT_SOURCE_DIR) / "tests/heads/t5").string()});
  EXPECT_THAT(keys.out, testing::Not(HasSubstr("{expert}"))) << keys.out;
}

// ---- folders that are not quite adapters

struct NotQuite {
  const char* name;
  const char* code;  // of every verb that needs weights
  std::vector<const char*> words;
  bool has_config = true;
  std::map<std::string, std::string> files{};  // beside adapter_config.json
};

TEST_F(Cli, folders_that_are_not_quite_adapters_are_named_and_their_config_is_shown) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4096\n";
  const std::vector<NotQuite> kinds = {
      {"config", "IO_OPEN", {"a config and no weights"}},
      {"pointer", "NOT_ST", {"Git LFS pointer", "git lfs pull"}, true, {{"adapter_model.safetensors", pointer}}},
      {"pickle", "E_PICKLE", {"adapter_model.bin"}, true, {{"adapter_model.bin", "\x80\x02}."}}},
      {"archive", "PK_ARCHIVE", {"adapter_model.bin"}, true, {{"adapter_model.bin", "PK"}}},
      {"sharded", "IX_FORM", {"index.json"}, true, {{"adapter_model.safetensors.index.json", "{}"}}},
      {"mlx",
       "CF_FORM",
       {"MLX-LM"},
       false,
       {{"adapters.safetensors", "x"}, {"adapter_config.json", R"({"fine_tune_type": "lora"})"}}},
      {"model", "IO_KIND", {"a whole model", "--base"}, false, {{"model.safetensors", "x"}, {"config.json", "{}"}}},
      {"checkpoints", "IO_OPEN", {"checkpoint-500", "--adapter-name"}, false, {}},
      {"config-pointer",
       "CF_FORM",
       {"Git LFS pointer"},
       false,
       {{"adapter_config.json", pointer},
        {"adapter_model.safetensors", read_text(fs::path(kV4) / "adapter_model.safetensors")}}},
  };
  const std::string config = read_text(fs::path(kV4) / "adapter_config.json");
  for (const NotQuite& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const fs::path folder = in(kind.name);
    fs::create_directories(folder);
    if (kind.has_config) std::ofstream(folder / "adapter_config.json") << config;
    for (const auto& [name, content] : kind.files) std::ofstream(folder / name, std::ios::binary) << content;
    if (std::string(kind.name) == "checkpoints") without_a_link(kV4, folder / "checkpoint-500");
    const std::vector<std::vector<std::string>> commands = {
        {"verify", folder, kV4, "--base", kModel},
        {"combine", folder.string() + "@1", "--type", "cat", "--base", kModel, "--out", in("out")},
        {"resize", folder, "--rank", "1", "--base", kModel, "--out", in("out")},
        {"merge", "--base", (kGolden / "models/rt-mixtral-v4").string(), "--adapter", folder, "--out", in("out")}};
    for (auto command : commands) {
      command.push_back("--json");
      const Result result = peft(command);
      ASSERT_NE(result.exit_code, 0) << command[0];
      EXPECT_EQ(result.parsed()["error"]["code"], kind.code) << command[0] << result.out;
      for (const char* word : kind.words) EXPECT_THAT(result.out, HasSubstr(word)) << command[0];
      EXPECT_FALSE(fs::exists(in("out"))) << command[0];
    }
    const Result inspected = peft({"inspect", folder, "--json"});
    EXPECT_NE(inspected.exit_code, 0);
    if (!kind.has_config) continue;
    const json report = inspected.parsed();
    EXPECT_EQ(inspected.exit_code, 1) << inspected.out;
    EXPECT_EQ(report["config"]["r"], json::parse(config)["r"]) << inspected.out;
    EXPECT_THAT(report["error"].get<std::string>(), HasSubstr(kind.code));
    EXPECT_THAT(peft({"inspect", folder}).out, HasSubstr("What the config says"));
  }
}

TEST_F(Cli, a_base_needs_only_its_config_also_where_the_adapter_lies_beside_it) {
  const std::string folder = without_a_link(kV4, in("both"));
  fs::copy_file(fs::path(kModel) / "config.json", in("both/config.json"));
  const Result beside = peft({"convert", folder, "--to", "peft-fused", "--base", folder, "--out", in("a"), "--json"});
  ASSERT_EQ(beside.exit_code, 0) << beside.out << beside.err;
  const Result apart = peft({"convert", kV4, "--to", "peft-fused", "--base", kModel, "--out", in("b"), "--json"});
  ASSERT_EQ(apart.exit_code, 0) << apart.out;
  EXPECT_EQ(read_text(in("a/adapter_model.safetensors")), read_text(in("b/adapter_model.safetensors")));
}

}  // namespace
