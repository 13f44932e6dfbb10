#include "layout/mlx/write.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "layout/encode/stack.h"
#include "layout/encode/uniform.h"
#include "layout/mlx/names.h"
#include "model/path.h"

namespace peft::layout {
namespace {

constexpr std::string_view kLayers = ".layers.";

// "model.layers.3.mlp.gate" -> 3 and "mlp.gate"; nullopt outside of the layers.
struct InLayer {
  std::int64_t layer = 0;
  std::string key;
};
std::optional<InLayer> in_layer(const std::string& module) {
  const auto start = module.find(kLayers);
  const auto numbers = model::path_key(module).numbers;
  if (start == std::string::npos || numbers.empty()) return std::nullopt;
  const auto end = module.find('.', start + kLayers.size());
  if (end == std::string::npos) return std::nullopt;
  return InLayer{numbers.front().value, module.substr(end + 1)};
}

// 0 where the modules of the model are not all known.
std::int64_t count_layers(const Model& model) {
  std::int64_t layers = 0;
  for (const auto g : {Generation::v4, Generation::v5}) {
    const auto& tree = model.tree(g);
    if (!tree || !tree->complete) continue;
    for (const Module& module : tree->modules) {
      if (const auto place = in_layer(module.name)) layers = std::max(layers, place->layer + 1);
    }
  }
  return layers;
}

class MlxWriter {
 public:
  explicit MlxWriter(UniformFile& out) : out_(out), least_layer_(-1) {}

  void add_dense(const Factor& factor) {
    require_place(factor.site.module);
    const std::string module = to_mlx(out_.model(), factor.site.module);
    add_key(module);
    const std::int64_t rank = out_.rank();
    Block a = out_.block_of_a(factor, 0), b = out_.block_of_b(factor, 0);
    a.source = a.source.transposed(), b.source = b.source.transposed();
    out_.add(module + ".lora_a", {factor.in, rank}, factor.in, rank, {a});
    out_.add(module + ".lora_b", {rank, factor.out}, rank, factor.out, {b});
  }

  void add_stack(const ProjectionStack& stack) {
    require_place(experts_module(*stack.experts));
    const std::string module = switch_name(out_.model(), *stack.experts, stack.projection);
    if (module.empty()) {
      out_.no_form(experts_module(*stack.experts), "MLX-LM's name for these experts is not known",
                   "give the model with --base, or its type with --family");
    }
    add_key(module);
    const std::int64_t rank = out_.rank();
    const auto experts = static_cast<std::int64_t>(stack.factors.size());
    std::vector<Block> a, b;
    for (std::int64_t e = 0; e < experts; ++e) {
      const Factor* factor = stack.factors[static_cast<std::size_t>(e)];
      if (factor == nullptr) continue;
      a.push_back(out_.block_of_a(*factor, e * rank));
      b.push_back(out_.block_of_b(*factor, e * stack.out));
    }
    out_.add(module + ".lora_a", {experts, rank, stack.in}, experts * rank, stack.in, std::move(a));
    out_.add(module + ".lora_b", {experts, stack.out, rank}, experts * stack.out, rank, std::move(b));
    out_.step(fmt::format("{} of {} experts as a switch layer", name(stack.projection), experts));
  }

  Encoded finish() {
    Encoded encoded = out_.finish();
    const std::int64_t layers = count_layers(out_.model());
    // All layers where their number is not known: LoRA without tensors is zero there.
    encoded.uniform->num_layers = layers == 0 || least_layer_ < 0 ? -1 : layers - least_layer_;
    encoded.uniform->keys.assign(keys_.begin(), keys_.end());
    return encoded;
  }

 private:
  void require_place(const std::string& module) const {
    const std::string_view why = missing_in_mlx(out_.model(), module);
    if (!why.empty())
      out_.no_form(module, std::string(why), "peft merge writes the model with the adapter in it, which MLX-LM runs");
  }

  void add_key(const std::string& module) {
    const auto place = in_layer(module);
    keys_.insert(place ? place->key : module);
    if (place) least_layer_ = least_layer_ < 0 ? place->layer : std::min(least_layer_, place->layer);
  }

  UniformFile& out_;
  std::set<std::string> keys_;
  std::int64_t least_layer_;
};

}  // namespace

Encoded encode_mlx(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options) {
  UniformFile out(factors, model, file, options);
  MlxWriter writer(out);
  for (const Factor* factor : out.dense()) writer.add_dense(*factor);
  for (const ProjectionStack& stack : out.stacks()) writer.add_stack(stack);
  return writer.finish();
}

}  // namespace peft::layout
