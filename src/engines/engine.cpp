#include "engines/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "peft/error.h"

namespace peft::engines {

extern const std::string_view kEnginesJson;  // data/engines.json, embedded by cmake/embed_tables.cmake

namespace {

using Json = nlohmann::json;

struct VerdictRow {
  Verdict verdict;
  std::string_view key, text;  // in the data; for people
  Outcome outcome;
};
constexpr VerdictRow kVerdicts[] = {
    {Verdict::binds, "binds", "binds", Outcome::right},
    {Verdict::unknown, "unknown", "not known", Outcome::unknown},
    {Verdict::dropped, "dropped", "dropped silently", Outcome::wrong},
    {Verdict::wrong_scale, "wrong_scale", "wrong scale", Outcome::wrong},
    {Verdict::misread, "misread", "misread silently", Outcome::wrong},
    {Verdict::wrong_names, "wrong_names", "wrong names: dropped silently", Outcome::wrong},
    {Verdict::rank_too_large, "rank_too_large", "rank too large: refused", Outcome::refuses},
    {Verdict::refused, "refused", "refused", Outcome::refuses},
};
const VerdictRow& row_of(Verdict verdict) { return *std::ranges::find(kVerdicts, verdict, &VerdictRow::verdict); }

[[noreturn]] void bad_row(const std::string& what) {
  at("data/engines.json").fail(ErrorCode::INTERNAL, {.problem = "a row cannot be read", .got = what});
}

std::string text_of(const Json& row, const char* key) { return row.value(key, std::string()); }

Facts facts_of(const Json& row, const char* key) {
  Facts facts = 0;
  for (const auto& name : row.value(key, std::vector<std::string>())) {
    const auto fact = parse_fact(name);
    if (!fact) bad_row("fact " + name);
    facts |= bit(*fact);
  }
  return facts;
}

Condition read_condition(const Json& row) {
  Condition condition{facts_of(row, "all"), facts_of(row, "none"), {}, {}};
  condition.families = row.value("families", condition.families);
  condition.except = row.value("except", condition.except);
  return condition;
}

Rule read_rule(const Json& row) {
  Rule rule;
  const std::string verdict = row.at("verdict").get<std::string>();
  const auto known = std::ranges::find(kVerdicts, verdict, &VerdictRow::key);
  if (known == std::end(kVerdicts)) bad_row("verdict " + verdict);
  rule.verdict = known->verdict;
  for (const auto& name : row.value("on", std::vector<std::string>())) {
    const auto part = parse_part(name);
    if (!part) bad_row("part " + name);
    rule.on.push_back(*part);
  }
  rule.condition = read_condition(row);
  rule.since = text_of(row, "since"), rule.until = text_of(row, "until");
  rule.why = text_of(row, "why"), rule.message = text_of(row, "message");
  rule.way_out = row.value("way_out", std::string("convert"));
  rule.measured = row.contains("case");
  rule.shown_by = text_of(row, rule.measured ? "case" : "source");
  return rule;
}

Form read_form(const Json& row) {
  Form form;
  form.condition = read_condition(row);
  form.layout = text_of(row, "layout"), form.spelling = text_of(row, "spelling");
  form.facts = facts_of(row, "runs_with");
  form.one_scale = row.value("one_scale", false), form.one_rank = row.value("one_rank", false);
  form.all_projections = row.value("all_projections", false);
  form.run = row.value("run", form.run);
  form.why = text_of(row, "why");
  return form;
}

Engine read_engine(const Json& row) {
  Engine engine;
  engine.name = text_of(row, "name"), engine.title = text_of(row, "title"), engine.what = text_of(row, "what");
  engine.like = text_of(row, "like");
  for (const Json& json : row.at("profiles")) {
    engine.profiles.push_back({text_of(json, "version"), text_of(json, "mode"), text_of(json, "title"),
                               facts_of(json, "facts"), json.value("shown", false)});
  }
  for (const Json& json : row.at("rules")) engine.rules.push_back(read_rule(json));
  for (const Json& json : row.at("forms")) engine.forms.push_back(read_form(json));
  engine.ranks = row.value("ranks", engine.ranks);
  engine.ranks_shown_by = text_of(row, "ranks_source");
  const Json none = Json::array();
  for (const Json& note : row.contains("notes") ? row.at("notes") : none)
    engine.notes.emplace_back(note.at(0).get<std::string>(), note.at(1).get<std::string>());
  return engine;
}

Example read_example(const Json& row) {
  Example example{text_of(row, "title"), text_of(row, "case"), {}};
  example.facts.facts = facts_of(row, "facts"), example.facts.model_type = text_of(row, "model_type");
  for (const auto& name : row.value("parts", std::vector<std::string>())) {
    const auto part = parse_part(name);
    if (!part) bad_row("part " + name);
    example.facts.parts[*part].modules = 1;
  }
  return example;
}

struct Table {
  std::vector<Engine> engines;
  std::vector<Example> examples;
};

Table read_table() {
  Table table;
  try {
    const Json json = Json::parse(kEnginesJson);
    for (const Json& row : json.at("engines")) table.engines.push_back(read_engine(row));
    for (const Json& row : json.at("examples")) table.examples.push_back(read_example(row));
  } catch (const nlohmann::json::exception& error) {
    bad_row(error.what());
  }
  return table;
}

const Table& table() {
  static const Table kTable = read_table();
  return kTable;
}

std::vector<int> numbers_of(std::string_view version) {
  std::vector<int> numbers(1, 0);
  for (const char c : version) {
    if (c == '.')
      numbers.push_back(0);
    else if (c >= '0' && c <= '9' && numbers.back() < 100'000'000)
      numbers.back() = numbers.back() * 10 + (c - '0');
  }
  return numbers;
}

[[noreturn]] void unknown_engine(const std::string& name) {
  throw Error(ErrorCode::USAGE, {.problem = "there is no profile of this engine",
                                 .expected = fmt::format("{}", fmt::join(engine_names(), ", ")),
                                 .got = name,
                                 .hint = "peft engines lists them; docs/add_an_engine.md adds one"});
}

}  // namespace

std::string_view name(Verdict verdict) { return row_of(verdict).text; }
Outcome outcome_of(Verdict verdict) { return row_of(verdict).outcome; }

std::string_view name(Outcome outcome) {
  constexpr std::string_view kNames[] = {"reads it right", "not known", "silently wrong", "refuses it"};
  return kNames[static_cast<std::size_t>(outcome)];
}

bool Condition::holds(Facts facts, std::string_view model_type) const {
  if ((facts & all) != all || (facts & none) != 0) return false;
  if (!families.empty() && std::ranges::find(families, model_type) == families.end()) return false;
  return std::ranges::find(except, model_type) == except.end();
}

bool version_less(std::string_view x, std::string_view y) {
  std::vector<int> a = numbers_of(x), b = numbers_of(y);
  a.resize(std::max(a.size(), b.size())), b.resize(a.size());
  return a < b;
}

std::span<const Engine> engines() { return table().engines; }
std::span<const Example> examples() { return table().examples; }

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const Engine& engine : engines()) names.push_back(engine.name);
  return names;
}

const Engine* find_engine(std::string_view name) {
  const auto found = std::ranges::find(engines(), name, &Engine::name);
  return found == engines().end() ? nullptr : &*found;
}

Chosen choose(const std::string& engine_and_version) {
  const auto mark = engine_and_version.find('@');
  const std::string name = engine_and_version.substr(0, mark);
  const std::string version = mark == std::string::npos ? "" : engine_and_version.substr(mark + 1);
  const Engine* engine = find_engine(name);
  if (engine == nullptr) unknown_engine(name);
  const bool plain = version.find_first_not_of("0123456789.") == std::string::npos;
  const Profile* newest = nullptr;
  for (const Profile& profile : engine->profiles) {
    // "0.21" names every 0.21.x that is known.
    const bool within =
        version.empty() || profile.version.starts_with(version + ".") || !version_less(version, profile.version);
    if (within && (newest == nullptr || !version_less(profile.version, newest->version))) newest = &profile;
  }
  if (newest == nullptr || !plain || (mark != std::string::npos && version.empty())) {
    throw Error(ErrorCode::USAGE, {.problem = "there is no profile of this version of " + engine->title,
                                   .expected = "a version from " + engine->profiles.front().version,
                                   .got = version,
                                   .hint = "peft engines " + name + " lists them"});
  }
  Chosen chosen{engine, {}};
  for (const Profile& profile : engine->profiles) {
    if (profile.version == newest->version) chosen.profiles.push_back(&profile);
  }
  return chosen;
}

}  // namespace peft::engines
