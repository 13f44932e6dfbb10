// How long it takes to match the module names of a large MoE model against patterns as people write them.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <string>
#include <vector>

#include "peft/config.h"
#include "pythonic/python_regex.h"

namespace {

// 94 layers of 128 experts with three projections, and attention: about 140,000 names.
std::vector<std::string> module_names() {
  std::vector<std::string> names;
  for (int layer = 0; layer < 94; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const char* name : {"self_attn", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                             "self_attn.o_proj", "mlp", "mlp.gate", "mlp.experts"}) {
      names.push_back(prefix + name);
    }
    for (int expert = 0; expert < 368; ++expert) {
      const std::string module = fmt::format("{}mlp.experts.{}", prefix, expert);
      names.push_back(module);
      for (const char* name : {".gate_proj", ".up_proj", ".down_proj"}) names.push_back(module + name);
    }
  }
  return names;
}

const char* const kPatterns[] = {
    R"(.*\.(q_proj|v_proj))",
    R"(.*\.(q_proj|v_proj|gate_proj|up_proj|down_proj))",
    R"(.*experts\.\d+\.(w1|w2|w3))",
    R"(model\.layers\.[0-3]\..*)",
    R"(^(?!.*visual).*(?:proj)$)",
    R"(q_proj)",
    R"(.*q_proj)",
    R"(.*q_proj$)",
    R"(^.*q_proj$)",
    R"((?!.*lm_head).*)",
    R"(.*(?<!shared_expert\.)(?:gate|up|down)_proj)",
    R"(.*\.layers\.(\d|1[0-9]|2[0-7])\..*_proj)",
    R"(model\.layers\.\d{1,2}\.mlp\..*)",
    R"(model.layers.*self_attn.(q|k|v|o)_proj)",
    R"(.*language_model.*\.(q_proj|in_proj_qkvz|gate_proj))",
    R"(.*\.mlp\.experts\..*)",
    R"(.*\.mlp\.experts(\..*)?)",
    R"(.*mlp\.(?!experts).*)",
    R"((.*\.)?(experts\.\d+\.w1)$)",
    R"((.*\.)?(q_proj|k_proj)$)",
    R"((^|.*\.)lm_head($|\..*))",
    R"(.*?\.[^.]*\.(\d+)\.)",
    R"(.*?\.layers\.(\d+)\.)",
    R"(.*\.gate$)",
    R"(.*\.gate)",
    R"(.*\.\d+\..*)",
    R"([^.]*)",
    R"(.*w[13]$)",
    R"(.*_proj(?!_))",
    R"(model\.(?P<kind>layers|visual)\..*)",
};

double milliseconds_for(const std::vector<std::string>& names, const std::vector<peft::PythonRegex>& patterns,
                        bool (peft::PythonRegex::*how)(std::string_view) const, std::size_t& hits) {
  const std::clock_t start = std::clock();  // processor time: other programs do not count
  for (const peft::PythonRegex& pattern : patterns) {
    for (const std::string& name : names) hits += (pattern.*how)(name) ? 1 : 0;
  }
  return 1000.0 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace

int main() {
  const std::vector<std::string> names = module_names();
  std::vector<peft::PythonRegex> patterns;
  for (const char* pattern : kPatterns) patterns.emplace_back(pattern);
  for (const auto& [what, how] :
       {std::pair("match", &peft::PythonRegex::matches), std::pair("fullmatch", &peft::PythonRegex::fullmatches)}) {
    double best = 1e300;
    std::size_t hits = 0;
    for (int run = 0; run < 5; ++run) {
      hits = 0;
      best = std::min(best, milliseconds_for(names, patterns, how, hits));
    }
    const double pairs = static_cast<double>(names.size() * patterns.size());
    fmt::print("{:9} {} names x {} patterns: {:.0f} ms, {:.0f} ns each, {} hits\n", what, names.size(), patterns.size(),
               best, best * 1e6 / pairs, hits);
  }
}
