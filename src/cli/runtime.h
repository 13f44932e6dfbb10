// peft logits, generate, params: the verbs that run a model. peft-torch carries them out (src/torch_cli); peft itself,
// which has no libtorch in it, hands the command line over (hand_over.cpp).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace peft::cli {

// The model to run, as typed.
struct RuntimeFlags {
  std::string base;
  std::vector<std::string> adapters;                   // several: all are active, and their updates add up
  std::string device = "cpu", dtype;                   // dtype "": what the base's config.json says
  bool base_is_residual = false, change_base = false;  // for PiSSA, OLoRA, ...: neither refuses such an adapter
  int threads = 0;                                     // 0: as many as torch takes by itself
  bool json = false;
  std::vector<std::string> command_line;  // without the program's name: what is handed over
};

struct LogitsCommand {
  RuntimeFlags model;
  std::string ids, mask, out;
  bool overwrite = false;
};
struct GenerateCommand {
  RuntimeFlags model;
  std::string ids, mask;
  std::optional<std::string> prompt;  // may be empty text
  std::int64_t max_new_tokens = 0;
  double temperature = 0, top_p = 1;  // temperature 0: the likeliest token
  std::int64_t top_k = 0;             // 0: all
  std::uint64_t seed = 0;
  bool ignore_eos = false;
};
struct ParamsCommand {
  RuntimeFlags model;
};
int run(const LogitsCommand& command);
int run(const GenerateCommand& command);
int run(const ParamsCommand& command);

}  // namespace peft::cli
