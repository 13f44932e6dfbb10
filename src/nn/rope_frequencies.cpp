#include <algorithm>
#include <cmath>
#include <numbers>

#include "nn/config.h"

namespace peft::nn {
namespace {

// theta^(2i / dim), in the precision the real program has.
std::vector<float> powers(double theta, std::int64_t dim) {
  std::vector<float> result;
  for (std::int64_t i = 0; i < dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(dim);
    result.push_back(std::pow(static_cast<float>(theta), exponent));
  }
  return result;
}

void stretch_llama3(const RopeConfig& rope, std::vector<float>& inverse) {
  const double low = rope.original_max_position / rope.low_freq_factor;
  const double high = rope.original_max_position / rope.high_freq_factor;
  for (float& f : inverse) {
    const double wavelength = 2 * std::numbers::pi / static_cast<double>(f);
    if (wavelength < high) continue;
    if (wavelength > low) {
      f = static_cast<float>(static_cast<double>(f) / rope.factor);
      continue;
    }
    const double smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    f = static_cast<float>((1 - smooth) * static_cast<double>(f) / rope.factor + smooth * static_cast<double>(f));
  }
}

double magnitude(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1; }

double yarn_scaling(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return magnitude(rope.factor, rope.mscale) / magnitude(rope.factor, rope.mscale_all_dim);
  }
  return magnitude(rope.factor, 1);
}

// The dimension that turns `rotations` times over the original context.
double correction(const RopeConfig& rope, double rotations, std::int64_t dim) {
  return static_cast<double>(dim) * std::log(rope.original_max_position / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

void stretch_yarn(const RopeConfig& rope, std::int64_t dim, std::vector<float>& inverse) {
  double low = correction(rope, rope.beta_fast, dim), high = correction(rope, rope.beta_slow, dim);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double f = static_cast<double>(inverse[i]);
    inverse[i] = static_cast<float>(f / rope.factor * ramp + f * (1 - ramp));
  }
}

}  // namespace

Frequencies rope_frequencies(const RopeConfig& rope, std::int64_t head_dim) {
  const auto dim = static_cast<std::int64_t>(static_cast<double>(head_dim) * rope.partial);
  Frequencies frequencies;
  for (const float power : powers(rope.theta, dim)) frequencies.inverse.push_back(1.0F / power);
  if (rope.type == "linear") {
    for (float& f : frequencies.inverse) f = static_cast<float>(static_cast<double>(f) / rope.factor);
  } else if (rope.type == "llama3") {
    stretch_llama3(rope, frequencies.inverse);
  } else if (rope.type == "yarn") {
    stretch_yarn(rope, dim, frequencies.inverse);
    frequencies.scaling = yarn_scaling(rope);
  }
  return frequencies;
}

}  // namespace peft::nn
