#include <fmt/format.h>

#include <algorithm>

#include "engines/fit.h"
#include "engines/read_facts.h"
#include "peft/error.h"
#include "peft/verbs.h"

namespace peft {
namespace {

using engines::Answer;
using engines::Outcome;

// The answer of the way of running that reads the file best; the plain way where several do.
Answer best_answer(const engines::Chosen& chosen, const engines::AdapterFacts& facts) {
  std::optional<Answer> best;
  for (const engines::Profile* profile : chosen.profiles) {
    Answer answer = judge(*chosen.engine, *profile, facts);
    if (!best || answer.outcome < best->outcome) best = std::move(answer);
  }
  return *best;
}

// A word of a shell's command line.
std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) != 0 || std::string_view("/._-=@+:,").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return text;
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

bool needs_merge(const Answer& answer) {
  return std::ranges::any_of(answer.parts, [](const engines::Judgement& part) {
    return outcome_of(part.verdict) != Outcome::right && part.rule != nullptr && part.rule->way_out == "merge";
  });
}

struct Conversion {
  std::string command, out;
};
Conversion conversion(const std::string& path, const std::string& base, const engines::Engine& engine,
                      const engines::Fit& fit) {
  const std::string out = path + (fit.form->layout == "gguf" ? ".gguf" : "-" + engine.name);
  return {fmt::format("peft convert {} --for {}@{}{} --out {}", shell_word(path), engine.name, fit.profile->version,
                      base.empty() ? "" : " --base " + shell_word(base), shell_word(out)),
          out};
}

// The command that mends it: another form, a lower rank, or the merged model.
std::string mend(const std::string& path, const Input& input, const DoctorOptions& options,
                 const engines::Chosen& chosen, const engines::AdapterFacts& facts, const Answer& answer) {
  const std::string& base = options.input.base;
  const bool rank = std::ranges::any_of(
      answer.parts, [](const engines::Judgement& part) { return part.verdict == engines::Verdict::rank_too_large; });
  if (rank) {
    const std::string with_base = base.empty() ? "" : " --base " + shell_word(base);
    return fmt::format("peft resize {}{} --rank {} --out {}", shell_word(path), with_base, chosen.engine->ranks.back(),
                       shell_word(fmt::format("{}-r{}", path, chosen.engine->ranks.back())));
  }
  const auto other = engines::fit(chosen, facts, input.model);
  const bool converts = other && other->layout && other->answer.outcome == Outcome::right && !needs_merge(answer);
  if (!converts) {
    return fmt::format("peft merge --base {} --adapter {} --out {}", base.empty() ? "BASE" : shell_word(base),
                       shell_word(path), shell_word(path + "-merged"));
  }
  return conversion(path, base, *chosen.engine, *other).command;
}

// How to run what the engine reads right. llama.cpp reads a PEFT folder through a converter; peft's is as good.
std::vector<std::string> how_to_run(const std::string& path, const Input& input, const DoctorOptions& options,
                                    const engines::Chosen& chosen, const engines::AdapterFacts& facts,
                                    const Answer& answer) {
  const std::string& base = options.input.base;
  const auto made = engines::fit(chosen, facts, input.model);
  const bool converts =
      made && made->layout && info(*made->layout).weights_file != info(input.reading.layout).weights_file;
  if (!converts) return run_lines(answer, facts, info(input.reading.layout).name, base, path);
  const Conversion first = conversion(path, base, *chosen.engine, *made);
  std::vector<std::string> lines = {first.command};
  for (std::string& line : run_lines(*chosen.engine, *made->form, base, first.out, facts.rank))
    lines.push_back(std::move(line));
  return lines;
}

DoctorReport::Part report_of(const engines::Engine& engine, const engines::Judgement& judgement) {
  DoctorReport::Part part;
  part.part = judgement.part;
  part.modules = judgement.count.modules, part.rank = judgement.count.rank, part.example = judgement.count.example;
  part.verdict = judgement.verdict, part.why = judgement.why;
  if (judgement.rule == nullptr) return part;
  part.message = judgement.rule->message;
  part.shown_by = judgement.rule->shown_by, part.measured = is_measured(engine, judgement);
  return part;
}

DoctorReport::Engine report_of(std::string path, const Input& input, const DoctorOptions& options,
                               const engines::Chosen& chosen, const engines::AdapterFacts& facts) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const Answer answer = best_answer(chosen, facts);
  DoctorReport::Engine engine{chosen.engine->name,
                              answer.profile->version,
                              answer.profile->mode,
                              answer.profile->title,
                              answer.outcome,
                              is_measured(answer),
                              {},
                              {},
                              {}};
  for (const engines::Judgement& judgement : answer.parts) engine.parts.push_back(report_of(*chosen.engine, judgement));
  if (engine.right())
    engine.run = how_to_run(path, input, options, chosen, facts, answer);
  else
    engine.mend = mend(path, input, options, chosen, facts, answer);
  return engine;
}

}  // namespace

DoctorReport doctor(const std::string& path, const DoctorOptions& options) {
  std::vector<engines::Chosen> asked;
  if (options.engine.empty()) {
    for (const std::string& name : engines::engine_names()) asked.push_back(engines::choose(name));
  } else {
    asked.push_back(engines::choose(options.engine));
  }
  InputOptions input_options = options.input;
  input_options.read.verb = Verb::inspect;
  const Input input = load(path, input_options);
  const engines::AdapterFacts facts = engines::facts_of(input.adapter, input.model, input.reading);
  DoctorReport report{path, input.model.model_type, input.reading.layout, input.reading.has_experts, {}, true};
  for (const engines::Chosen& chosen : asked) {
    report.engines.push_back(report_of(path, input, options, chosen, facts));
    report.all_right = report.all_right && report.engines.back().right();
  }
  return report;
}

}  // namespace peft
