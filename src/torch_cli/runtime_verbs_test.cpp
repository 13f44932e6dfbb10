// peft logits, generate and params as a user runs them, on the golden data.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "peft/safetensors.h"
#include "support/golden.h"
#include "support/program.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string root(const std::string& path) { return (golden_root() / path).string(); }

ProgramResult peft(const std::vector<std::string>& arguments, const std::vector<std::string>& environment = {}) {
  return run_program(PEFT_PROGRAM, arguments, environment);
}

// [[1, 2], [3, 4]] as --ids takes it.
std::string rows_text(const Json& rows) {
  std::vector<std::string> texts;
  for (const auto& row : rows) texts.push_back(fmt::format("{}", fmt::join(row.get<std::vector<std::int64_t>>(), ",")));
  return fmt::format("{}", fmt::join(texts, ";"));
}

std::vector<float> read_f32(const std::string& file, const std::string& name) {
  const auto tensors = TensorFile::open(file);
  const TensorInfo* info = tensors->find(name);
  EXPECT_NE(info, nullptr) << name;
  if (info == nullptr) return {};
  EXPECT_EQ(info->dtype, Dtype::f32);
  const auto bytes = tensors->bytes(*info);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// The largest difference where the mask is one; infinite where there is a NaN.
double difference(const std::vector<float>& got, const std::vector<float>& wanted, const Json& mask) {
  std::vector<int> flat;
  for (const auto& row : mask) flat.insert(flat.end(), row.begin(), row.end());
  if (got.size() != wanted.size() || got.empty() || got.size() % flat.size() != 0) return HUGE_VAL;
  const std::size_t vocabulary = got.size() / flat.size();
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (flat[i / vocabulary] == 0) continue;
    const double d = std::fabs(double{got[i]} - double{wanted[i]});
    largest = d <= largest ? largest : std::isnan(d) ? HUGE_VAL : d;
  }
  return largest;
}

std::vector<std::string> ids_of(const std::string& group) {
  std::vector<std::string> names;
  for (const Case& c : cases(golden_root(), group)) names.push_back(c.folder.filename().string());
  return names;
}
std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

class Logits : public ::testing::TestWithParam<std::string> {};

TEST_P(Logits, are_those_of_transformers_and_peft) {
  const Json json = read_json(root("runtime/" + GetParam() + "/case.json"));
  const TemporaryFolder folder;
  for (const char* model_key : {"model", "model_v4"}) {
    // The repository's own selection has the second form of some models only.
    if (json[model_key].is_null() || !std::filesystem::exists(root("models/" + json[model_key].get<std::string>())))
      continue;
    for (const char* kind : {"base", "lora"}) {
      const std::string out = folder / (std::string(model_key) + kind);
      std::vector<std::string> arguments = {"logits",
                                            "--base",
                                            root("models/" + json[model_key].get<std::string>()),
                                            "--ids",
                                            rows_text(json["input_ids"]),
                                            "--mask",
                                            rows_text(json["attention_mask"]),
                                            "--dtype",
                                            "F32",
                                            "--out",
                                            out};
      if (kind == std::string("lora"))
        arguments.insert(arguments.end(), {"--adapter", root("runtime/" + GetParam() + "/adapter")});
      const ProgramResult result = peft(arguments);
      ASSERT_EQ(result.exit_code, 0) << result.err;
      const auto wanted =
          read_f32(root("runtime/" + GetParam() + "/" + json["expect"][kind].get<std::string>()), "logits");
      EXPECT_LE(difference(read_f32(out, "logits"), wanted, json["attention_mask"]),
                json["expect"]["tolerance"]["fp32"][kind]["abs"].get<double>())
          << model_key << " " << kind;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, Logits, ::testing::ValuesIn(ids_of("runtime")), test_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Logits);

// Corners: a head beside a tied embedding, adapters by how they started, trainable tokens of both embeddings.
TEST(Parity, logits_and_warnings_are_those_of_transformers_and_peft) {
  for (const auto& name : ids_of("parity")) {
    const Json json = read_json(root("parity/" + name + "/case.json"));
    if (json["expect"]["result"] != "logits") continue;
    const TemporaryFolder folder;
    const bool own_base = fs::exists(root("parity/" + name + "/base"));
    const std::string base =
        own_base ? root("parity/" + name + "/base") : root("models/" + json["model"].get<std::string>());
    for (const char* kind : {"base.logits", "lora.logits"}) {
      const std::string adapter = root("parity/" + name + "/adapter"), out = folder / kind;
      const bool lora = kind == std::string("lora.logits");
      if (lora && !fs::exists(adapter)) continue;
      std::vector<std::string> arguments = {"logits",  "--base", base,    "--ids", rows_text(json["input_ids"]),
                                            "--dtype", "F32",    "--out", out,     "--json"};
      if (lora) arguments.insert(arguments.end(), {"--adapter", adapter});
      const ProgramResult result = peft(arguments);
      ASSERT_EQ(result.exit_code, 0) << name << result.err;
      const auto wanted = read_f32(root("parity/" + name + "/expected/logits.safetensors"), kind);
      Json all = json["input_ids"];
      for (auto& row : all)
        for (auto& id : row) id = 1;
      EXPECT_LE(difference(read_f32(out, "logits"), wanted, all), json["expect"]["tolerance"].get<double>())
          << name << " " << kind;
      const bool warns = json["expect"].value("warning", false);
      EXPECT_EQ(Json::parse(result.out)["warnings"].empty(), !warns) << result.out;
      EXPECT_EQ(result.err.find("warning: ") == std::string::npos, !warns) << result.err;
    }
  }
}

class Generate : public ::testing::TestWithParam<std::string> {};

TEST_P(Generate, gives_the_tokens_of_transformers) {
  const Json json = read_json(root("generate/" + GetParam() + "/case.json"));
  for (const auto& [name, expect] : json["expect"].items()) {
    std::vector<std::string> arguments = {"generate",
                                          "--base",
                                          root("models/" + json["model"].get<std::string>()),
                                          "--ids",
                                          rows_text(expect["input_ids"]),
                                          "--mask",
                                          rows_text(expect["attention_mask"]),
                                          "--max-new-tokens",
                                          std::to_string(expect["new_tokens"][0].size()),
                                          "--ignore-eos",
                                          "--dtype",
                                          "F32",
                                          "--json"};
    if (name.starts_with("lora"))
      arguments.insert(arguments.end(), {"--adapter", root(json["adapter"].get<std::string>())});
    const ProgramResult result = peft(arguments);
    ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
    EXPECT_EQ(Json::parse(result.out)["new_tokens"], expect["new_tokens"]) << name;
  }
}
INSTANTIATE_TEST_SUITE_P(Golden, Generate, ::testing::ValuesIn(ids_of("generate")), test_name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Generate);

TEST(Params, prints_the_line_of_peft_for_models_of_full_size) {
  for (const auto& name : ids_of("shapes")) {
    const TemporaryFolder folder;
    const std::string config = folder / "adapter_config.json";
    Json json = read_json(root("shapes/" + name + "/expected/config_after.json"));
    json["peft_type"] = "LORA";
    write_file(config, json.dump());
    const ProgramResult result =
        peft({"params", "--base", root("shapes/" + name + "/base"), "--adapter", config, "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err << result.out;
    const auto line = read_json(root("shapes/" + name + "/case.json"))["trainable_line"].get<std::string>();
    const auto got = Json::parse(result.out);
    const std::string all = " || all params: ";
    const std::string wanted_all = line.substr(line.find(all), line.rfind(" ||") - line.find(all));
    EXPECT_THAT(got["line"].get<std::string>(), HasSubstr(wanted_all)) << name;
    if (!line.starts_with("trainable params: 0 ")) {
      EXPECT_EQ(got["line"], line);
    }
  }
}

// A model folder of links, with a tokenizer of eight words.
class Prompt : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const auto& entry : fs::directory_iterator(root("models/rt-llama")))
      fs::create_symlink(entry.path(), folder_.path() / entry.path().filename());
    Json vocabulary;
    for (int i = 0; i < 300; ++i) vocabulary["w" + std::to_string(i)] = i;
    const Json model = {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "w0"}};
    const Json tokenizer = {{"version", "1.0"},
                            {"added_tokens", Json::array()},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                            {"post_processor", nullptr},
                            {"decoder", nullptr},
                            {"model", model}};
    write_file(folder_.path() / "tokenizer.json", tokenizer.dump());
  }
  std::vector<std::string> arguments(const std::string& prompt) const {
    return {"generate", "--base", folder_.path().string(), "--prompt", prompt, "--max-new-tokens", "5", "--ignore-eos"};
  }
  TemporaryFolder folder_;
};

TEST_F(Prompt, text_goes_in_and_comes_out) {
  const ProgramResult text = peft(arguments("w5 w6 w7"));
  ASSERT_EQ(text.exit_code, 0) << text.err;
  auto with_json = arguments("w5 w6 w7");
  with_json.push_back("--json");
  const Json json = Json::parse(peft(with_json).out);
  EXPECT_EQ(json["prompt_ids"], Json({{5, 6, 7}}));
  EXPECT_EQ(json["text"].get<std::string>() + "\n", text.out);
  const ProgramResult ids =
      peft({"generate", "--base", folder_.path().string(), "--ids", "5,6,7", "--max-new-tokens", "5", "--ignore-eos"});
  EXPECT_EQ(ids.out, fmt::format("{}\n", fmt::join(json["new_tokens"][0].get<std::vector<int>>(), " ")));
}

TEST_F(Prompt, the_same_seed_draws_the_same_text) {
  auto drawn = arguments("w5 w6 w7");
  drawn.insert(drawn.end(), {"--temperature", "5", "--seed", "3"});
  const ProgramResult first = peft(drawn), second = peft(drawn);
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, second.out);
  drawn.back() = "4";
  EXPECT_NE(peft(drawn).out, first.out);
}

TEST_F(Prompt, without_a_python_that_reads_tokenizers_the_error_says_so) {
  const ProgramResult result = peft(arguments("w5"), {"PEFT_PYTHON=/nonexistent/python"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("PEFT_PYTHON"));
}

TEST_F(Prompt, an_id_that_the_model_does_not_have_is_an_error) {
  const ProgramResult result = peft(arguments("w299"));
  EXPECT_EQ(result.exit_code, 2) << result.out;
  EXPECT_THAT(result.err, HasSubstr("299"));
}

struct BadLine {
  std::vector<std::string> arguments;
  int exit_code;
  const char* text;
};

TEST(Runtime, what_is_wrong_is_one_error) {
  const std::string model = root("models/rt-llama"), other = root("runtime/mixtral/adapter");
  const TemporaryFolder folder;
  const std::string taken = folder / "taken";
  write_file(taken, "x");
  const std::string head = folder / "head";  // an adapter of a classifier
  fs::copy(root("parity/eva/adapter"), head);
  Json config = read_json(head + "/adapter_config.json");
  config["task_type"] = "SEQ_CLS";
  write_file(head + "/adapter_config.json", config.dump());
  const std::vector<BadLine> lines = {
      {{"logits", "--base", model, "--ids", "1,x"}, 2, "row 1, place 2"},
      {{"logits", "--base", model, "--ids", "1,2;3"}, 2, "row 2"},
      {{"logits", "--base", model, "--ids", "1,2", "--mask", "1,2"}, 2, "0 and 1"},
      {{"logits", "--base", model, "--ids", "1,99999"}, 2, "99999"},
      {{"logits", "--base", model, "--ids", "1", "--device", "tpu9"},
       2,
       "\"device\": not a device: expected cpu, cuda or cuda:N, got tpu9"},
      {{"logits", "--base", model, "--ids", "1", "--dtype", "F8"}, 2, "--dtype"},
      {{"logits", "--base", model, "--ids", "1", "--out", taken}, 2, "exists"},
      {{"logits", "--base", model, "--ids", "1", "--out", taken + "/x"}, 3, "folder"},
      {{"logits", "--base", folder / "nothing", "--ids", "1"}, 3, "nothing"},
      {{"logits", "--base", model, "--ids", "1", "--adapter", other}, 1, "the base has no experts"},
      {{"logits", "--base", model, "--ids", "1", "--adapter", head}, 1, "classifier, score"},
      {{"generate", "--base", model, "--max-new-tokens", "3"}, 2, "--ids or --prompt"},
      {{"generate", "--base", model, "--ids", "1,2", "--mask", "1,0", "--max-new-tokens", "3"}, 2, "right"},
      {{"generate", "--base", model, "--ids", "1", "--max-new-tokens", "0"}, 2, "max-new-tokens"},
      {{"generate", "--base", model, "--prompt", "a", "--max-new-tokens", "3"}, 2, "tokenizer.json"},
      {{"params", "--base", folder / "nothing"}, 3, "nothing"},
  };
  for (const auto& line : lines) {
    const ProgramResult result = peft(line.arguments);
    EXPECT_EQ(result.exit_code, line.exit_code) << fmt::format("{}", fmt::join(line.arguments, " ")) << "\n"
                                                << result.err;
    EXPECT_THAT(result.err, HasSubstr(line.text)) << fmt::format("{}", fmt::join(line.arguments, " "));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

}  // namespace
}  // namespace peft::testing
