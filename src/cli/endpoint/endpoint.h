// peft doctor --endpoint: asks a running server for log-probabilities with and without an adapter, and compares them
// with those of the native runtime.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/endpoint/dialect.h"
#include "cli/endpoint/log_probabilities.h"

namespace peft::cli {

struct EndpointOptions {
  ServerOptions server;
  std::string base, adapter;      // folders
  std::vector<std::int64_t> ids;  // of the prompt; empty: some that the vocabulary has
};
struct EndpointReport {
  Comparison comparison;
  std::string what;        // in words
  std::size_t tokens = 0;  // of the prompt, but those that the server gave no number for
};
// Throws IO_OPEN where no server is reached, and what the runtime throws.
EndpointReport ask_server(const EndpointOptions& options);

}  // namespace peft::cli
