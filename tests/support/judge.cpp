#include "support/judge.h"

#include <cmath>
#include <cstring>

#include "layout/stacked.h"
#include "peft/model.h"

namespace peft::testing {
namespace {

std::string site_key(const Site& site) {
  if (site.expert >= 0) return fmt::format("{}.{}.{}", site.module, site.expert, name(site.projection));
  if (site.parameter.empty() || site.parameter == "weight") return site.module;
  return site.module + "." + site.parameter;
}

bool is_zero(const OracleFactor& factor) { return factor.scale == 0 || trimmed(factor).b.cols == 0; }

// Calls `compare(site, want, got)` for all sites that both have; what one side lacks must be zero on the other.
template <typename Compare>
void for_each_site(const OracleFactors& want, const OracleFactors& got, Compare&& compare) {
  for (const auto& [site, factor] : want) {
    const auto found = got.find(site);
    if (found == got.end()) {
      require(is_zero(factor), site + ": expected a LoRA factor, got none");
    } else {
      compare(site, factor, found->second);
    }
  }
  for (const auto& [site, factor] : got) {
    if (!want.contains(site)) require(is_zero(factor), site + ": expected no LoRA factor, got one");
  }
}

bool close(double x, double y) { return std::fabs(x - y) <= 1e-12 * std::fabs(x); }

std::string shape_text(const TensorInfo& tensor) {
  return fmt::format("{} [{}]", tensor.dtype_name, fmt::join(tensor.shape, ", "));
}

bool is_zero(const TensorFile& file, const TensorInfo& tensor) {
  for (const double value : elements(file, tensor))
    if (value != 0) return false;
  return true;
}

// A lora_B of zeros, or the lora_A that belongs to one.
bool adds_nothing(const TensorFile& file, std::string key) {
  if (const auto at = key.find(".lora_A."); at != std::string::npos) key.replace(at, 8, ".lora_B.");
  const TensorInfo* b = key.find(".lora_B.") == std::string::npos ? nullptr : file.find(key);
  return b && is_zero(file, *b);
}

// A function of its own, because formatting a text for each element would take most of the time.
[[noreturn]] void fail_element(const std::string& site, std::size_t i, const Matrix& want, const Matrix& got) {
  throw Failure(
      fmt::format("{} element {}: expected delta {:.9g}, got {:.9g}", site, i, want.values[i], got.values[i]));
}

}  // namespace

OracleFactors factors_of(const Input& input) {
  OracleFactors factors;
  const TensorFile& file = *input.adapter.weights;
  for (const Factor& factor : input.reading.factors.factors) {
    const std::string key = site_key(factor.site);
    OracleFactor read{matrix_of(file, factor.a), matrix_of(file, factor.b), factor.scale};
    require(read.a.rows == factor.rank && read.b.cols == factor.rank, key + ": A, B and rank do not agree");
    require(read.a.cols == factor.in && read.b.rows == factor.out, key + ": A, B and in, out do not agree");
    require(factors.emplace(key, std::move(read)).second, key + ": two factors for one site");
  }
  return factors;
}

void compare_deltas(const OracleFactors& want, const OracleFactors& got, double tolerance) {
  for_each_site(want, got, [&](const std::string& site, const OracleFactor& w, const OracleFactor& g) {
    const Matrix x = w.delta(), y = g.delta();
    require(same_shape(x, y), fmt::format("{}: expected [{}, {}], got [{}, {}]", site, x.rows, x.cols, y.rows, y.cols));
    const Matrix bound = scaled(std::fabs(w.scale), product(absolute(w.b), absolute(w.a)));
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      if (!(std::fabs(x.values[i] - y.values[i]) <= tolerance * bound.values[i])) fail_element(site, i, x, y);
    }
  });
}

void compare_factors(const OracleFactors& want, const OracleFactors& got, bool scale_may_move) {
  for_each_site(want, got, [&](const std::string& site, const OracleFactor& w, const OracleFactor& g) {
    const OracleFactor x = trimmed(w), y = trimmed(g);
    require(x.b.cols == y.b.cols, fmt::format("{}: expected rank {}, got {}", site, x.b.cols, y.b.cols));
    if (x.b.cols == 0) return;
    const bool moves = scale_may_move && x.scale != y.scale;  // both may be 0
    const double moved = moves ? std::exp2(std::round(std::log2(x.scale / y.scale))) : 1;
    require(same_bits(x.a, y.a), site + ": lora_A is not the same bit for bit");
    require(same_bits(scaled(moved, x.b), y.b), site + ": lora_B is not the same bit for bit");
    require(close(x.scale, moved * y.scale),
            fmt::format("{}: expected scale {:.17g}, got {:.17g}", site, x.scale, y.scale));
  });
}

void compare_deltas(const std::map<std::string, Matrix>& want, const OracleFactors& got, double tolerance) {
  require(!want.empty(), "no expected deltas");
  for (const auto& [site, x] : want) {
    const auto found = got.find(site);
    require(found != got.end(), site + ": expected a LoRA factor, got none");
    const Matrix y = found->second.delta();
    require(same_shape(x, y), fmt::format("{}: expected [{}, {}], got [{}, {}]", site, x.rows, x.cols, y.rows, y.cols));
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      if (!(std::fabs(x.values[i] - y.values[i]) <= tolerance)) fail_element(site, i, x, y);
    }
  }
}

void compare_tensors(const TensorFile& want, const TensorFile& got, bool with_extra) {
  for (const TensorInfo& tensor : want.tensors()) {
    const std::string key(tensor.name);
    const TensorInfo* other = got.find(tensor.name);
    if (!other && with_extra && adds_nothing(want, key)) continue;
    require(other != nullptr, key + ": expected this tensor, got none");
    require(std::ranges::equal(tensor.shape, other->shape),
            fmt::format("{}: expected {}, got {}", key, shape_text(tensor), shape_text(*other)));
    const auto x = elements(want, tensor), y = elements(got, *other);
    require(std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) == 0, key + ": not the same bit for bit");
  }
  for (const TensorInfo& tensor : got.tensors()) {
    require(want.find(tensor.name) != nullptr, std::string(tensor.name) + ": a tensor that was not expected");
  }
}

void compare_bytes(const TensorFile& want, const TensorFile& got) {
  compare_tensors(want, got);
  for (const TensorInfo& tensor : want.tensors()) {
    const TensorInfo* other = got.find(tensor.name);
    require(tensor.dtype == other->dtype,
            fmt::format("{}: expected {}, got {}", tensor.name, shape_text(tensor), shape_text(*other)));
    require(std::ranges::equal(want.bytes(tensor), got.bytes(*other)), std::string(tensor.name) + ": other bytes");
  }
}

Resolved resolve(const AdapterConfig& config, const Model& model, Generation generation) {
  const auto& tree = model.tree(generation);
  require(tree.has_value(), "no module tree of this generation");
  // Per-expert files are PEFT 0.18's; fused ones are judged by the newest rules.
  std::optional<AdapterConfig::Version> as_of;
  if (generation == Generation::v4) as_of = AdapterConfig::Version{0, 18, 1};
  Resolved resolved;
  for (const Target& target : resolve_targets(config, *tree, model, generation, as_of).targets) {
    resolved[target.name] = {target.rank, target.scaling};
  }
  return resolved;
}

void compare_targets(const Resolved& resolved, const OracleAdapter& adapter, const Json& config) {
  const ScaleRule rule(config);
  for (const std::string& name : adapter.modules) {
    const auto found = resolved.find(name);
    require(found != resolved.end(), name + ": expected the config to target it, got no target");
    const auto [rank, scaling] = found->second;
    require(rank == rule.rank(name), fmt::format("{}: expected rank {}, got {}", name, rule.rank(name), rank));
    const double scale = rule.scale(name, rank);
    require(close(scale, scaling), fmt::format("{}: expected scaling {:.17g}, got {:.17g}", name, scale, scaling));
  }
  for (const auto& [name, target] : resolved) {
    require(adapter.modules.contains(name), name + ": the config targets it, expected no LoRA here");
  }
}

void compare_resolved(const Resolved& want, const Resolved& got) {
  for (const auto& [name, target] : want) {
    const auto found = got.find(name);
    require(found != got.end(), name + ": expected a target, got none");
    require(target.first == found->second.first && close(target.second, found->second.second),
            fmt::format("{}: expected rank {} scaling {:.9g}, got rank {} scaling {:.9g}", name, target.first,
                        target.second, found->second.first, found->second.second));
  }
  for (const auto& [name, target] : got) require(want.contains(name), name + ": a target that was not expected");
}

std::string path_of(const std::string& folder, Layout layout) {
  return layout == Layout::gguf ? folder + "/adapter.gguf" : folder;
}

Input load_as(const std::string& folder, const InputOptions& options, Layout layout) {
  if (layout == Layout::gguf) return load(path_of(folder, layout), options);
  try {
    return load(folder, options);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::LO_LAYOUT) throw;
  }
  InputOptions named = options;
  named.read.layout = layout;
  return load(folder, named);
}

Plan convert(const Input& input, ConvertOptions options, Layout to, const std::string& folder) {
  options.to = to;
  Plan plan = plan_convert(input, options);
  materialize(plan, folder);
  return plan;
}

bool is_trainer_layout(Layout layout) {
  return layout == Layout::nemo || (layout::find_stacked_form(layout) != nullptr && layout != Layout::tinker);
}

bool is_program_layout(Layout layout) {
  return info(layout).form != AdapterForm::peft || layout == Layout::tinker || is_trainer_layout(layout);
}

std::optional<Exactness> check_program_tour(const Input& input, const ConvertOptions& options, Layout to,
                                            const OracleFactors& want, const std::string& folder) {
  Plan plan;
  try {
    plan = convert(input, options, to, folder);
  } catch (const Error& error) {
    // The program has no such model or no such tensor, or what is needed of the model is not known.
    if (error.code() == ErrorCode::LO_NO_FORM || error.code() == ErrorCode::MD_NEEDED) return std::nullopt;
    throw;
  }
  const Input there = load_as(folder, options.input, to);
  require(there.reading.layout == to || !there.reading.has_experts, "another layout was read");
  const Dtype dtype = there.adapter.weights->tensors().front().dtype;
  compare_deltas(want, factors_of(there), plan.exactness <= Exactness::value_exact ? kExact : rounding(dtype));
  return plan.exactness;
}

bool gives_bytes_back(Layout layout, Exactness exactness) {
  return exactness == Exactness::bit_exact || (layout == Layout::gguf && exactness == Exactness::value_exact);
}

}  // namespace peft::testing
