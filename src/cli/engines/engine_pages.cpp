#include "cli/engines/engine_pages.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "cli/output/output.h"
#include "cli/output/table.h"
#include "engines/judge.h"
#include "peft/layout.h"

namespace peft::cli {
namespace {

using engines::Engine;
using engines::Fact;
using engines::Facts;
using engines::Form;
using engines::Outcome;
using engines::Profile;
using engines::Rule;

constexpr std::string_view kMadeFromEngines =
    "<!-- Made by `peft docs`; change data/engines.json, then `make docs`. -->\n\n";

std::vector<std::string> fact_names(Facts facts) {
  std::vector<std::string> names;
  for (const auto& row : engines::fact_info()) {
    if ((facts & bit(row.fact)) != 0) names.emplace_back(row.name);
  }
  return names;
}

std::vector<std::string> part_names(const std::vector<engines::Part>& parts) {
  std::vector<std::string> names;
  for (const auto part : parts) names.emplace_back(info(part).name);
  return names;
}

// The condition in words: "peft-fused experts; not: ...".
std::string condition_text(const engines::Condition& condition) {
  std::string text;
  const auto add = [&](std::string_view lead, std::string_view words) {
    if (!words.empty()) text += fmt::format("{}{}{}", text.empty() ? "" : "; ", lead, words);
  };
  const auto meanings = [](Facts facts) {
    std::string words;
    for (const auto& row : engines::fact_info()) {
      if ((facts & bit(row.fact)) != 0) words += (words.empty() ? "" : ", and ") + std::string(row.meaning);
    }
    return words;
  };
  add("", meanings(condition.all));
  add("not: ", meanings(condition.none));
  add("models: ", fmt::format("{}", fmt::join(condition.families, ", ")));
  add("models other than ", fmt::format("{}", fmt::join(condition.except, ", ")));
  return text;
}

std::string parts_text(const Rule& rule) {
  using enum engines::Part;
  const std::vector<engines::Part> experts = {experts_gate_up, experts_down, experts_other};
  if (rule.on.empty()) return "everything";
  if (rule.on == experts) return "experts";
  std::string text;
  for (const auto part : rule.on) text += (text.empty() ? "" : "; ") + std::string(info(part).text);
  return text;
}

std::string versions_text(const Rule& rule) {
  std::string text;
  if (!rule.since.empty()) text += "from " + rule.since;
  if (!rule.until.empty()) text += (text.empty() ? "" : " ") + std::string("before ") + rule.until;
  return text;
}

std::string shown_text(const Rule& rule) {
  if (rule.verdict == engines::Verdict::unknown) return "not run: " + rule.shown_by;
  return rule.measured ? "measured: " + rule.shown_by : "by its source, not run: " + rule.shown_by;
}

Json condition_json(const engines::Condition& condition) {
  return {{"all", fact_names(condition.all)},
          {"none", fact_names(condition.none)},
          {"families", condition.families},
          {"except", condition.except}};
}

Json rule_json(const Rule& rule) {
  Json json = condition_json(rule.condition);
  json.update({{"verdict", name(rule.verdict)},
               {"on", part_names(rule.on)},
               {"since", rule.since},
               {"until", rule.until},
               {"why", rule.why},
               {"message", rule.message},
               {"way_out", rule.way_out},
               {"shown_by", rule.shown_by},
               {"measured", rule.measured}});
  return json;
}

Json form_json(const Form& form) {
  Json json = condition_json(form.condition);
  json.update({{"layout", form.layout},
               {"spelling", form.spelling},
               {"runs_with", fact_names(form.facts)},
               {"one_scale", form.one_scale},
               {"one_rank", form.one_rank},
               {"all_projections", form.all_projections},
               {"run", form.run},
               {"why", form.why}});
  return json;
}

// What the form changes beside the layout.
std::string form_text(const Form& form) {
  std::string text = form.layout;
  const auto add = [&](bool on, std::string_view words) {
    if (on) text += fmt::format("; {}", words);
  };
  add(!form.spelling.empty(), "names of experts as this engine spells them");
  add(form.one_scale, "one scale, the others folded into lora_B");
  add(form.one_rank, "one rank, padded with zeros");
  add(form.all_projections, "missing gate, up or down as pairs of zeros");
  add(!form.why.empty(), form.why);
  return text;
}

std::string layouts_text(const Engine& engine) {
  std::vector<std::string> names;
  for (const Form& form : engine.forms) {
    if (std::find(names.begin(), names.end(), form.layout) == names.end()) names.push_back(form.layout);
  }
  return names.empty() ? "none: merged models only" : fmt::format("{}", fmt::join(names, ", "));
}

std::string versions_of(const Engine& engine) {
  std::vector<std::string> versions;
  for (const Profile& profile : engine.profiles) {
    if (versions.empty() || versions.back() != profile.version) versions.push_back(profile.version);
  }
  return fmt::format("{}", fmt::join(versions, ", "));
}

Table engine_table() {
  Table table({{"engine"}, {"versions"}, {"what it does"}, {"layout it is given by --for"}});
  for (const Engine& engine : engines::engines())
    table.add({engine.name, versions_of(engine), engine.what, layouts_text(engine)});
  return table;
}

Table rule_table(const Engine& engine, bool binds) {
  Table table({{"part of the adapter"}, {"where"}, {"verdict"}, {"why"}, {"shown by"}});
  for (const Rule& rule : engine.rules) {
    if ((outcome_of(rule.verdict) == Outcome::right) != binds) continue;
    std::string where = condition_text(rule.condition);
    if (const std::string versions = versions_text(rule); !versions.empty())
      where += (where.empty() ? "" : "; ") + versions;
    std::string why = rule.why;
    if (!rule.message.empty()) why += fmt::format("{}it says: {}", why.empty() ? "" : ". ", rule.message);
    table.add({parts_text(rule), where, std::string(name(rule.verdict)), why, shown_text(rule)});
  }
  return table;
}

Table form_table(const Engine& engine) {
  Table table({{"adapter"}, {"what `--for` writes"}, {"run it with"}});
  for (const Form& form : engine.forms) {
    const std::string condition = condition_text(form.condition);
    table.add({condition.empty() ? "any other" : condition, form_text(form),
               fmt::format("{}", fmt::join(form.run, " and "))});
  }
  return table;
}

// What the engines make of some adapters of real programs.
Table example_table() {
  std::vector<Column> columns = {{"file"}};
  std::vector<std::pair<const Engine*, const Profile*>> profiles;
  for (const Engine& engine : engines::engines()) {
    for (const Profile& profile : engine.profiles) {
      if (!profile.shown) continue;
      profiles.emplace_back(&engine, &profile);
      columns.push_back({profile.title});
    }
  }
  Table table(columns);
  for (const engines::Example& example : engines::examples()) {
    std::vector<std::string> cells = {example.title};
    for (const auto& [engine, profile] : profiles) {
      const engines::Answer answer = judge(*engine, *profile, example.facts);
      const engines::Judgement* decisive = answer.decisive();
      const bool wrong = answer.outcome == Outcome::wrong;
      std::string cell = decisive == nullptr ? "right" : wrong ? "W" : answer.outcome == Outcome::refuses ? "x" : "?";
      if (wrong) cell += fmt::format(": {}", name(decisive->verdict));
      if (!is_measured(answer) && decisive != nullptr) cell += " (source)";
      cells.push_back(std::move(cell));
    }
    table.add(std::move(cells));
  }
  return table;
}

}  // namespace

Json engine_json(const Engine& engine) {
  Json profiles = Json::array(), rules = Json::array(), forms = Json::array(), notes = Json::array();
  for (const Profile& profile : engine.profiles) {
    profiles.push_back({{"version", profile.version},
                        {"mode", profile.mode},
                        {"title", profile.title},
                        {"facts", fact_names(profile.facts)}});
  }
  for (const Rule& rule : engine.rules) rules.push_back(rule_json(rule));
  for (const Form& form : engine.forms) forms.push_back(form_json(form));
  for (const auto& [topic, text] : engine.notes) notes.push_back({{"topic", topic}, {"text", text}});
  return {{"name", engine.name},   {"title", engine.title},
          {"what", engine.what},   {"like", engine.like},
          {"profiles", profiles},  {"rules", rules},
          {"forms", forms},        {"notes", notes},
          {"ranks", engine.ranks}, {"ranks_shown_by", engine.ranks_shown_by}};
}

void print_engine_table() {
  write_out(engine_table().render(0, static_cast<std::size_t>(terminal_width())));
  write_out("\nrules of one engine: peft engines ENGINE; docs/engines.md\n");
}

void print_engine_profile(const Engine& engine) {
  const auto width = static_cast<std::size_t>(terminal_width());
  write_out(bold(engine.title, STDOUT_FILENO) + ": " + engine.what + ". Versions: " + versions_of(engine) + "\n");
  if (!engine.like.empty()) write_out("Where no rule of its own speaks: as " + engine.like + "\n");
  for (const auto& [topic, text] : engine.notes) write_out(fmt::format("  {}: {}\n", topic, text));
  write_out("\n" + bold("What it does not read right", STDOUT_FILENO) + "\n");
  write_out(rule_table(engine, false).render(2, width));
  write_out("\n" + bold("What it reads right", STDOUT_FILENO) + "\n");
  write_out(rule_table(engine, true).render(2, width));
  write_out("\n" + bold("What peft convert --for writes", STDOUT_FILENO) + "\n");
  write_out(form_table(engine).render(2, width));
}

std::string engine_page(const Engine& engine) {
  std::string page = fmt::format("# I serve with {}\n\n{}", engine.title, kMadeFromEngines);
  page += fmt::format("{} {}. Versions looked at: {}.\n\n", engine.title, engine.what, versions_of(engine));
  page += fmt::format(
      "    peft doctor my-lora --for {0} --base MODEL                     does it read my adapter right?\n"
      "    peft convert my-lora --for {0} --base MODEL --out my-lora-ok    make it so; prints how to start the "
      "engine\n\n",
      engine.name);
  if (!engine.like.empty()) page += fmt::format("Where no rule below speaks, it does as `{}` does.\n\n", engine.like);
  Table notes({{"about"}, {"what is known"}});
  for (const auto& [topic, text] : engine.notes) notes.add({topic, text});
  if (!notes.empty()) page += notes.markdown() + "\n";
  if (!engine.ranks.empty())
    page += fmt::format("Limits of rank it can be started with: {} ({}).\n\n", fmt::join(engine.ranks, ", "),
                        engine.ranks_shown_by);
  const Table forms = form_table(engine), wrong = rule_table(engine, false), right = rule_table(engine, true);
  page += "## What is written for it\n\nThe first row that fits the adapter decides.\n\n";
  page += forms.empty() ? "Nothing: it takes merged models only (`peft merge`).\n" : forms.markdown();
  page +=
      "\n## What it does not read right\n\nOf the rules for a part, the first that fits decides, those of the next "
      "section included.\n\n";
  page += wrong.empty() ? "Nothing of its own.\n" : wrong.markdown();
  if (!right.empty()) page += "\n## What it reads right\n\n" + right.markdown();
  return page;
}

std::string engines_page() {
  std::string page =
      "# Engines\n\n" + std::string(kMadeFromEngines) +
      "What programs make of adapters, and what `peft convert --for ENGINE` writes for them. The data is "
      "`data/engines.json`;\n[add_an_engine.md](add_an_engine.md) explains its rows. A verdict was "
      "measured on the program (a golden case), or its source was read.\n\n";
  page += engine_table().markdown() + "\nA page for each:";
  for (const Engine& engine : engines::engines()) page += fmt::format(" [{0}](engines/{0}.md)", engine.name);
  page +=
      "\n\n## Some adapters of real programs\n\nW: loads without a word and is wrong; x: refuses; ?: not known.\n\n" +
      example_table().markdown();
  page += "\n## Facts\n\nWhat of an adapter the rules ask for.\n\n";
  Table facts({{"fact"}, {"meaning"}});
  for (const auto& row : engines::fact_info()) facts.add({std::string(row.name), std::string(row.meaning)});
  return page + facts.markdown();
}

std::string readme_tables() {
  Table table({{"layout"}, {"written by"}, {"read by"}});
  for (const auto& row : layouts())
    table.add({fmt::format("`{}`", row.name), std::string(row.written_by), std::string(row.read_by)});
  return table.markdown() +
         "\nEach is read, and each is written from each, where the target can hold it.\n\n"
         "What other programs do with such files, on real adapters (W: loads without a word and is wrong; x: refuses; "
         "(source): read, not run):\n\n" +
         example_table().markdown();
}

}  // namespace peft::cli
