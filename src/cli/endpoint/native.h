// Log-probabilities of the native runtime: peft-torch is run, and its logits are read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/endpoint/log_probabilities.h"

namespace peft::cli {

class NativeRuntime {
 public:
  // Makes a folder for what peft-torch writes; it is removed with the object.
  NativeRuntime(std::string base, std::string adapter, std::vector<std::int64_t> ids);
  ~NativeRuntime();
  NativeRuntime(const NativeRuntime&) = delete;
  NativeRuntime& operator=(const NativeRuntime&) = delete;

  // Throw RT_PROGRAM with what peft-torch said where it fails.
  LogProbabilities base() const { return run({}); }
  LogProbabilities with_adapter() const { return run(adapter_); }
  // With the adapter's alphas multiplied, where its config has some: PEFT's, in a folder.
  bool has_alpha() const;
  LogProbabilities with_scale(double scale) const;

 private:
  LogProbabilities run(const std::string& adapter) const;

  std::string base_, adapter_, folder_;
  std::vector<std::int64_t> ids_;
};

}  // namespace peft::cli
