// What a benchmark measured, for the page that bench/report.py makes. Without $PEFT_BENCH_RESULTS nothing is written.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace peft::bench {

struct Result {
  std::string claim;    // a row of bench/claims.json: "merge"
  std::string what;     // "best, rank 8, 1 thread"
  std::string against;  // "cp"
  double ours = 0, theirs = 0;
  std::string unit;  // of both: "ms"
  double ratio = 0;  // as the claim defines it
};

inline std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += c;
  }
  return json + "\"";
}

// Appends a line of JSON to the file that $PEFT_BENCH_RESULTS names. bench/record.py sets it.
inline void record(const Result& result) {
  const char* path = std::getenv("PEFT_BENCH_RESULTS");
  if (path == nullptr) return;
  std::FILE* file = std::fopen(path, "a");
  if (file == nullptr) {
    std::perror(path);
    std::exit(1);
  }
  std::fprintf(file,
               "{\"claim\": %s, \"what\": %s, \"against\": %s, \"ours\": %.6g, \"theirs\": %.6g, \"unit\": %s, "
               "\"ratio\": %.4g}\n",
               quoted(result.claim).c_str(), quoted(result.what).c_str(), quoted(result.against).c_str(), result.ours,
               result.theirs, quoted(result.unit).c_str(), result.ratio);
  std::fclose(file);
}

}  // namespace peft::bench
