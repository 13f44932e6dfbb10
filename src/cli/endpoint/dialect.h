// In which way a server is asked for the log-probabilities of a prompt: a class for each kind of server.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/endpoint/log_probabilities.h"

namespace peft::cli {

struct ServerOptions {
  std::string url, model, lora;  // "http://127.0.0.1:8000/v1"; what the server calls the base, and the adapter
  double seconds = 120;          // for each answer
};
struct Asked {
  LogProbabilities values;
  ServerVerdict failed = ServerVerdict::right;  // else why there are none
  std::string what;
};

class Dialect {
 public:
  virtual ~Dialect() = default;
  virtual Asked base(const std::vector<std::int64_t>& ids) const = 0;
  virtual Asked adapter(const std::vector<std::int64_t>& ids) const = 0;
  // What the server says of the adapter itself, for the reader of a verdict.
  virtual std::string note() const { return {}; }
};
// Finds out which one the server understands. Null, and a `failure`, where it does not answer or has no such adapter.
// Throws IO_OPEN where no server is reached.
std::unique_ptr<Dialect> find_dialect(const ServerOptions& options, Asked& failure);

}  // namespace peft::cli
