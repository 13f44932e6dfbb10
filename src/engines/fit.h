// The form in which an adapter has to be written for an engine, and what the engine will make of it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engines/judge.h"
#include "peft/layout.h"

namespace peft::engines {

struct Fit {
  const Form* form = nullptr;
  const Profile* profile = nullptr;  // the way of running that the form needs
  std::optional<Layout> layout;      // absent: this program cannot write it
  Answer answer;                     // of the file that will be written
};
// nullopt: the engine takes no adapters.
std::optional<Fit> fit(const Chosen& chosen, const AdapterFacts& facts, const Model& model);

// The row's lines with the base, the output and the limit of rank in them. What is empty or 0 stays a word to replace.
std::vector<std::string> run_lines(const Engine& engine, const Form& form, const std::string& base,
                                   const std::string& out, std::int64_t rank);
// The lines to start the engine with, for a file that it reads right as it is.
std::vector<std::string> run_lines(const Answer& answer, const AdapterFacts& facts, std::string_view layout,
                                   const std::string& base, const std::string& path);

}  // namespace peft::engines
