// The vision tower of a composite model: present, counted, adapted, saved and loaded. Nothing runs it yet.
#include "nn/impl.h"

namespace peft::nn {
namespace {

class VisionBuilder {
 public:
  VisionBuilder(Modules& modules, at::TensorOptions options) : modules_(modules), options_(options) {}

  void affine(const std::string& name, const char* class_name, ModuleKind kind, std::vector<std::int64_t> shape,
              std::int64_t bias) {
    Plain* module = modules_.add<Plain>(name, class_name, kind);
    module->first = at::empty(shape, options_), module->second = at::empty({bias}, options_);
    module->slots = {{"weight", &module->first}, {"bias", &module->second}};
  }

  void norm(const std::string& name, std::int64_t size) { affine(name, "LayerNorm", ModuleKind::other, {size}, size); }

  void linear(const std::string& name, std::int64_t in, std::int64_t out) {
    Linear* module = modules_.add<Linear>(name, "Linear", ModuleKind::linear);
    module->weight = at::empty({out, in}, options_), module->bias = at::empty({out}, options_);
    module->slots = {{"weight", &module->weight}, {"bias", &module->bias}};
  }

  void embedding(const std::string& name, std::int64_t rows, std::int64_t features) {
    Embedding* module = modules_.add<Embedding>(name, "Embedding", ModuleKind::embedding);
    module->weight = at::empty({rows, features}, options_);
    module->slots = {{"weight", &module->weight}};
  }

 private:
  Modules& modules_;
  at::TensorOptions options_;
};

}  // namespace

void build_vision(Modules& modules, const VisionConfig& v, at::TensorOptions options) {
  VisionBuilder builder(modules, options);
  builder.affine("model.visual.patch_embed.proj", "Conv3d", ModuleKind::conv,
                 {v.hidden, v.channels, v.temporal_patch, v.patch, v.patch}, v.hidden);
  builder.embedding("model.visual.pos_embed", v.positions, v.hidden);
  for (std::int64_t i = 0; i < v.depth; ++i) {
    const std::string block = "model.visual.blocks." + std::to_string(i);
    builder.norm(block + ".norm1", v.hidden);
    builder.norm(block + ".norm2", v.hidden);
    builder.linear(block + ".attn.qkv", v.hidden, 3 * v.hidden);
    builder.linear(block + ".attn.proj", v.hidden, v.hidden);
    builder.linear(block + ".mlp.linear_fc1", v.hidden, v.intermediate);
    builder.linear(block + ".mlp.linear_fc2", v.intermediate, v.hidden);
  }
  const std::int64_t merged = v.hidden * v.merge * v.merge;
  builder.norm("model.visual.merger.norm", v.hidden);
  builder.linear("model.visual.merger.linear_fc1", merged, merged);
  builder.linear("model.visual.merger.linear_fc2", merged, v.out_hidden);
}

}  // namespace peft::nn
