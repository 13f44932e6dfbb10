// Runs peft.cpp over the golden data: what real programs wrote and what they mean.
//
//     golden_test                              every case below the root ($PEFT_GOLDEN, ../shared/golden, tests/golden)
//     golden_test convert/mixtral native       cases whose path begins so
//
// A line for each case that fails, one for each group, and last "golden: N cases, N passed". Exit code 1 on a failure.
#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <vector>

#include "peft/error.h"
#include "support/golden_checks.h"

namespace peft::testing {
namespace {

struct Group {
  const char* name;
  const char* place;  // below the root
  std::vector<Case> (*list)(const std::filesystem::path& root, const std::string& place);
  void (*check)(const Case&, const std::filesystem::path& root);
};
constexpr Group kGroups[] = {
    {"convert", "convert", cases, check_convert},
    {"native", "native", cases, check_native},
    {"consumers", "consumers", cases, check_consumer},
    {"config/migrate", "config/migrate", cases, check_migrate},
    {"config/migrate, targets on their own model", "config/migrate", cases, check_own_targets},
    {"config/resolve", "config/resolve", cases, check_resolve},
    {"config/written", "config/written", files, check_written},
    {"config/trainable_line", "config/trainable_line.json", rows, check_trainable_line},
    {"regex", "regex/python_re.jsonl", rows, check_regex},
    {"shapes", "shapes", cases, check_shapes},
    {"merge", "merge", cases, check_merge},
    {"quant", "quant", cases, check_quant},
    {"parity", "parity", cases, check_parity},
    {"tokenizer", "tokenizer", cases, check_tokenizer},
};

// Cases that are not run, by how their names begin. Each has its reason.
struct Skip {
  const char* begins;
  const char* why;
};
constexpr Skip kSkipped[] = {
    {"consumers/vllm/", "what vLLM loads: no adapter of its own"},
    {"config/resolve/loftq_missing", "PEFT fails because a Python package is missing"},
#ifndef PEFT_HAVE_TOKENIZERS
    {"tokenizer/", "no Python with the package tokenizers when this was built, and no runtime that needs it"},
#endif
};

bool is_selected(const std::string& id, const std::vector<std::string>& filters) {
  if (filters.empty()) return true;
  for (const std::string& filter : filters)
    if (id.starts_with(filter)) return true;
  return false;
}

const char* skip_reason(const std::string& id) {
  for (const Skip& skip : kSkipped)
    if (id.starts_with(skip.begins)) return skip.why;
  return nullptr;
}

struct Count {
  int cases = 0, passed = 0;
};

Count run_group(const Group& group, const std::filesystem::path& root, const std::vector<std::string>& filters) {
  Count count;
  for (const Case& c : group.list(root, group.place)) {
    if (!is_selected(c.id, filters)) continue;
    if (const char* why = skip_reason(c.id)) {
      fmt::print("skip {}: {}\n", c.id, why);
      continue;
    }
    ++count.cases;
    try {
      group.check(c, root);
      ++count.passed;
    } catch (const std::exception& error) {
      fmt::print("FAIL {}: {}\n", c.id, error.what());
    }
    std::fflush(stdout);
  }
  if (count.cases) fmt::print("{}: {}/{}\n", group.name, count.passed, count.cases);
  return count;
}

int run(const std::vector<std::string>& filters) {
  const std::filesystem::path root = golden_root();
  Count all;
  for (const Group& group : kGroups) {
    const Count count = run_group(group, root, filters);
    all.cases += count.cases;
    all.passed += count.passed;
  }
  if (!all.cases) fmt::print("no case below {}\n", root.string());
  fmt::print("golden: {} cases, {} passed\n", all.cases, all.passed);
  return all.cases && all.passed == all.cases ? 0 : 1;
}

}  // namespace
}  // namespace peft::testing

int main(int argc, char** argv) {
  try {
    return peft::testing::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "golden_test: {}\n", error.what());
    return 1;
  }
}
