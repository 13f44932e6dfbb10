// Profiles of the programs that read adapters: data/engines.json, and its one reader. A profile says which forms the
// engine reads right, what it drops, misreads or refuses, and how it is started. docs/add_an_engine.md explains the
// rows.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engines/facts.h"

namespace peft::engines {

// The conditions of a row: facts that all hold, facts of which none holds, and model types.
struct Condition {
  Facts all = 0, none = 0;
  std::vector<std::string> families, except;
  bool holds(Facts facts, std::string_view model_type) const;
};

// One thing that is known of an engine. Of the rules for a part, the first that fits decides.
struct Rule {
  Verdict verdict = Verdict::binds;
  std::vector<Part> on;  // empty: every part
  Condition condition;
  std::string since, until;  // versions; "": all. `until` is the first version without it
  std::string why, message;  // in our words; in the engine's
  std::string way_out;       // "convert" (another form mends it), "merge", "resize"
  std::string shown_by;      // a golden case, or a source
  bool measured = false;     // the engine was run on it; else its source was read
};

// A form to write for the engine. Of the rows, the first that fits the adapter decides.
struct Form {
  Condition condition;
  std::string layout;            // by name: "peft-fused"
  std::string spelling;          // names of experts other than transformers': a row of "spellings" in families.json
  Facts facts = 0;               // how the engine has to run: mixed_format
  bool one_scale = false;        // rsLoRA and patterns are folded into lora_B
  bool one_rank = false;         // ranks are padded with zeros
  bool all_projections = false;  // missing gate, up or down are written as zero pairs
  std::vector<std::string> run;  // lines to copy: "vllm serve {base} --max-lora-rank {rank} ..."
  std::string why;
};

// One version of an engine, in one way of running.
struct Profile {
  std::string version, mode, title;
  Facts facts = 0;
  bool shown = false;  // in the table of `peft inspect`
};

struct Engine {
  std::string name, title, what, like;  // like: "peft@0.21.2": the rules of that one follow its own
  std::vector<Profile> profiles;        // versions ascending
  std::vector<Rule> rules;
  std::vector<Form> forms;
  std::vector<std::int64_t> ranks;  // values that a limit of rank may have; the last is the largest; empty: no limit
  std::string ranks_shown_by;
  std::vector<std::pair<std::string, std::string>> notes;  // topic, text: for the pages
};
std::span<const Engine> engines();

// An adapter by its facts, for tables of what engines make of it.
struct Example {
  std::string title, shown_by;
  AdapterFacts facts;
};
std::span<const Example> examples();

std::vector<std::string> engine_names();

// The profiles of one version: one for each way of running.
struct Chosen {
  const Engine* engine = nullptr;
  std::vector<const Profile*> profiles;
};
// "vllm", "vllm@0.33", "vllm@0.33.1": the newest version that is not newer than the one named. Throws USAGE for an
// engine that is not known, and for a version older than those that are.
Chosen choose(const std::string& engine_and_version);
const Engine* find_engine(std::string_view name);

// 0.21.2 after 0.19.1 and 0.9.
bool version_less(std::string_view x, std::string_view y);

}  // namespace peft::engines
