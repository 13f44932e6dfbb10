// Will an adapter work where it shall run? Verdicts for each kind of module, and the command that mends it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peft/verbs.h"

namespace peft {

struct DoctorOptions {
  InputOptions input;
  std::string engine;  // "vllm" or "vllm@0.33"; "": every engine in its newest version
};
struct DoctorReport {
  std::string path, layout, model_type;
  struct Part {
    std::string part;  // "experts, gate and up"
    std::int64_t modules = 0, rank = 0;
    std::string example;       // one module
    std::string verdict;       // "binds", "dropped silently", "wrong scale", "refused", ...
    std::string why, message;  // in our words; in the engine's
    std::string shown_by;      // the golden case or the source that shows it; "" nothing speaks of it
    bool measured = false;     // the engine was run; else its source was read
  };
  struct Engine {
    std::string name, version, mode, title;
    std::string answer;  // "reads it right", "not known", "silently wrong", "refuses it"
    bool right = false, measured = false;
    std::vector<Part> parts;
    std::vector<std::string> run;  // how to start it, where it reads the file right
    std::string mend;              // the one command that mends it; "" where nothing needs to be
  };
  std::vector<Engine> engines;
  bool all_right = false;  // of the engine that was asked for
};
// Reads headers, not tensors, as far as the layout can be told from them.
DoctorReport doctor(const std::string& path, const DoctorOptions& options);

}  // namespace peft
