// What an engine makes of an adapter: a verdict for each part, from the rules of its profile.
#pragma once

#include <string>
#include <vector>

#include "engines/engine.h"

namespace peft::engines {

struct Judgement {
  Part part = Part::other;
  PartCount count;
  Verdict verdict = Verdict::binds;
  const Rule* rule = nullptr;  // null: no rule speaks of it, so it binds; or the rank decides
  std::string why;
};

// One profile's answer.
struct Answer {
  const Engine* engine = nullptr;
  const Profile* profile = nullptr;
  std::vector<Judgement> parts;
  Outcome outcome = Outcome::right;   // the worst of the parts
  const Judgement* decisive() const;  // the part that decides; null where all bind
};
Answer judge(const Engine& engine, const Profile& profile, const AdapterFacts& facts);

// Whether all that the answer rests on was measured, that is, seen in a run of the engine. What an engine does because
// it is built on another one was seen in runs of that other one.
bool is_measured(const Answer& answer);
bool is_measured(const Engine& engine, const Judgement& judgement);

// The smallest limit of rank that the engine can be started with and that lets `rank` through; `rank` where the engine
// has no list, 0 where none is large enough.
std::int64_t rank_limit(const Engine& engine, std::int64_t rank);

}  // namespace peft::engines
