// What combine, resize and extract have in common: flags of the result, carrying it out, printing it.
#pragma once

#include <string>

#include "cli/json_output.h"
#include "peft/execute.h"
#include "peft/low_rank.h"

namespace peft::cli {

struct ResultFlags {
  std::string out, to, dtype;
  bool dry_run = false, quiet = false, json = false;
  ExecuteOptions execute;

  std::optional<Layout> layout() const;  // throw USAGE for a value that is not one of those allowed
  std::optional<Dtype> element() const;
  void require_out() const;
};

// Writes the plan unless it is a dry run, and prints `title`, sizes, errors; or JSON that begins with `head`.
int finish(const ResultFlags& flags, LowRankResult result, const std::string& title, Json head);

}  // namespace peft::cli
