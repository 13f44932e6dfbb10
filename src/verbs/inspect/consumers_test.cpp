#include "verbs/inspect/consumers.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "test_paths.h"

namespace peft::verbs {
namespace {

TEST(ConsumerTensors, every_program_has_one_answer_for_every_kind) {
  std::map<std::pair<int, int>, int> seen;
  for (const TensorRow& row : tensor_rows()) {
    ++seen[{static_cast<int>(row.program), static_cast<int>(row.kind)}];
    EXPECT_TRUE(row.verdict == kRight || row.verdict == kRefuses || row.verdict == kWrong) << row.verdict;
    EXPECT_EQ(row.why.empty(), row.verdict == kRight) << row.why;
    EXPECT_FALSE(row.source.empty());
    if (row.source.starts_with("golden/") || row.source.starts_with("tests/")) {
      const std::string path =
          row.source.starts_with("golden/") ? "tests/" + std::string(row.source) : std::string(row.source);
      EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(PEFT_SOURCE_DIR) / path)) << path;
    }
    const TensorRow* worst = worst_row(row.program, {row.kind});
    EXPECT_EQ(worst, row.verdict == kRight ? nullptr : &row);
  }
  EXPECT_EQ(seen.size(), kTensorPrograms * kTensorKinds);
  for (const auto& [key, count] : seen) EXPECT_EQ(count, 1);
}

struct Case {
  std::string folder;
  std::set<TensorKind> kinds;
  std::string vllm, llama_cpp;
};

// Files of the real PEFT.
TEST(ConsumerTensors, are_looked_at_in_files) {
  const std::string right(kRight), refuses(kRefuses);
  const Case cases[] = {
      {"heads/llama-seq-cls", {TensorKind::unnamed_head}, refuses, refuses},
      {"heads/llama-seq-cls-new", {TensorKind::named_head}, right, refuses},
      {"heads/mixtral-seq-cls-v4", {TensorKind::named_head}, right, refuses},
      {"heads/distilbert-question-ans", {TensorKind::other_head}, refuses, refuses},
      {"heads/distilbert-seq-cls", {TensorKind::unnamed_head, TensorKind::other_head}, refuses, refuses},
      {"heads/llama-saved-embedding", {TensorKind::saved_embedding}, refuses, refuses},
      {"heads/bert-all-biases", {TensorKind::unnamed_head, TensorKind::base_bias}, refuses, refuses},
      {"heads/t5", {}, right, right},
      {"convolutions/fp32-dora/adapter", {TensorKind::magnitude}, refuses, refuses},
  };
  for (const Case& row : cases) {
    SCOPED_TRACE(row.folder);
    const auto folder = std::filesystem::path(PEFT_SOURCE_DIR) / "tests" / row.folder;
    InputOptions options;
    if (row.folder.find("mixtral") != std::string::npos)
      options.family = "mixtral";  // names alone do not tell the type
    const Input input = load(folder.string(), options);
    EXPECT_EQ(tensor_kinds(input), row.kinds);
    std::map<std::string, std::string> verdicts;
    for (const auto& consumer : consumer_verdicts(consumer_facts(input))) verdicts[consumer.name] = consumer.verdict;
    EXPECT_EQ(verdicts["vLLM 0.32"], row.vllm);
    EXPECT_EQ(verdicts["llama.cpp convert_lora_to_gguf.py"], row.llama_cpp);
    EXPECT_EQ(verdicts["PEFT 0.21.2, transformers 5"], right);
  }
}

TEST(ConsumerLayouts, every_row_has_a_reason_and_a_source) {
  std::set<Program> programs;
  for (const LayoutRow& row : layout_rows()) {
    programs.insert(row.program);
    EXPECT_TRUE(row.verdict == kRight || row.verdict == kRefuses || row.verdict == kWrong) << row.verdict;
    EXPECT_EQ(row.why.empty(), row.verdict == kRight) << row.why;
    EXPECT_EQ(row.all_of & row.none_of, 0u) << "no adapter has and lacks the same: " << row.why;
    EXPECT_FALSE(row.source.empty());
    if (row.source.starts_with("golden/")) {
      const auto path = std::filesystem::path(PEFT_SOURCE_DIR) / "tests" / row.source;
      EXPECT_TRUE(std::filesystem::exists(path)) << path;
    }
  }
  EXPECT_EQ(programs.size(), kTensorPrograms + 1);
}

// Rows of the table in tests/golden/consumers/README.md: PEFT, llama.cpp, vLLM, vLLM with enable_mixed_moe_lora_format.
TEST(ConsumerLayouts, say_what_the_real_programs_did) {
  struct Row {
    std::string family, adapter, answers;  // R right, x refuses, W silently wrong
  };
  const Row rows[] = {
      {"mixtral", "perexpert", "RRRR"},
      {"mixtral", "perexpert-tied", "RRRR"},
      {"mixtral", "perexpert-router", "RRRR"},
      {"mixtral", "perexpert-rslora", "WWRR"},
      {"mixtral", "perexpert-mixedrank", "xRRR"},
      {"mixtral", "perexpert-alphapat", "WWRR"},
      {"mixtral", "fused", "RxWW"},
      {"mixtral", "fused-gateup-only", "RxWW"},
      {"mixtral", "fused-0.18.1", "xxWW"},
      {"qwen3_moe", "perexpert", "RRRR"},
      {"qwen3_moe", "fused", "RxxR"},
      {"qwen3_moe", "fused-0.18.1", "xxxx"},
      {"gpt_oss", "fused", "RxRR"},
      {"gpt_oss", "fused-gateup-only", "Rxxx"},
      {"gpt_oss", "fused-down-only", "Rxxx"},
      {"gpt_oss", "fused-0.19.0", "xxxx"},
  };
  const auto root = std::filesystem::path(PEFT_SOURCE_DIR) / "tests" / "golden";
  for (const Row& row : rows) {
    InputOptions options;
    options.base = (root / "models" / ("consumer-" + row.family)).string();
    const auto folder = root / "consumers" / row.family / row.adapter / "adapter";
    std::map<std::string, std::string> verdicts;
    for (const auto& consumer : consumer_verdicts(consumer_facts(load(folder.string(), options))))
      verdicts[consumer.name] = consumer.verdict;
    std::string answers;
    for (const char* program : {"PEFT 0.21.2, transformers 5", "llama.cpp convert_lora_to_gguf.py", "vLLM 0.32",
                                "vLLM 0.32, enable_mixed_moe_lora_format"})
      answers += verdicts[program] == kRight ? 'R' : verdicts[program] == kRefuses ? 'x' : 'W';
    EXPECT_EQ(answers, row.answers) << row.family << " " << row.adapter;
  }
}

}  // namespace
}  // namespace peft::verbs
