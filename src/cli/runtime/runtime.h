// peft logits, generate, params: the flags of the verbs that run a model. peft-torch carries them out (src/torch_cli);
// peft itself has no libtorch in it and becomes peft-torch (exec_peft_torch.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace peft::cli {

// The model to run, as typed.
struct RuntimeFlags {
  std::string base;
  std::vector<std::string> adapters;                   // several: all are active, and their updates add up
  std::string device = "cpu", dtype;                   // dtype "": what the base's config.json says
  bool base_is_residual = false, change_base = false;  // for PiSSA, OLoRA, ...: neither refuses such an adapter
  int threads = 0;                                     // 0: as many as torch takes by itself
  bool json = false;
  std::vector<std::string> command_line;  // without the program's name, for peft-torch
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
void add_logits(CLI::App& app, LogitsCommand& command);
void add_generate(CLI::App& app, GenerateCommand& command);
void add_params(CLI::App& app, ParamsCommand& command);
int run(const LogitsCommand& command);
int run(const GenerateCommand& command);
int run(const ParamsCommand& command);

// Rows of numbers as --ids and --mask take them: "1,2,3;4,5,6".
using Rows = std::vector<std::vector<std::int64_t>>;

// Rows of equal length, at least one number each, none negative. Throws USAGE naming the flag, row and place.
Rows parse_ids(std::string_view text);
// The same shape as `ids`, zeros and ones, each row with a one. Empty text: an empty result, nothing is masked.
Rows parse_mask(std::string_view text, const Rows& ids);
// The paths where peft-torch is looked for (exec_peft_torch.h), in that order, whether there is a file or not.
std::vector<std::string> places_of_peft_torch();

// Text generation continues the last token: throws USAGE where padding stands right of a row's tokens or between them.
void require_left_padding(const Rows& mask);

}  // namespace peft::cli
