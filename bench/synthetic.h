// A large adapter made up for benchmarks, and plans for it built by hand: no model, no layout code.
#pragma once

#include <cstdint>
#include <string>

#include "peft/plan.h"

namespace peft::bench {

// Qwen3-30B-A3B: 48 layers of 128 experts.
struct Shape {
  std::int64_t layers = 48, experts = 128, rank = 8, hidden = 2048, inter = 768;
};

// Writes `path`: one pair of lora_A and lora_B per expert and projection, and attention. BF16, pseudo-random bits.
void write_per_expert(const std::string& path, const Shape& shape);

// The plan from such a file to the fused form (gate and up block-diagonal), and back.
Plan plan_fuse(const std::string& path, const Shape& shape);
Plan plan_unfuse(const std::string& path, const Shape& shape);

}  // namespace peft::bench
