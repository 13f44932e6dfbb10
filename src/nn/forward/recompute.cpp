#include "nn/forward/recompute.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <mutex>
#include <utility>

#include "nn/kernels/autocast.h"

namespace peft::nn {
namespace {

using at::Tensor;

at::Generator generator_of(const Tensor& x) { return at::globalContext().defaultGenerator(x.device()); }

Tensor state_of(at::Generator& generator) {
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}

void set_state(at::Generator& generator, const Tensor& state) {
  const std::scoped_lock lock(generator.mutex());
  generator.set_state(state);
}

// What the second run needs. `state`: of the random numbers, where there are some.
struct Kept {
  Part part;
  Tensor state;
  bool autocast = false;
};

// The values carry no history of their own; `x` needs a gradient exactly where it did before, because that decides
// which code runs.
std::vector<Tensor> run(const Kept& kept, const Tensor& x) {
  const at::AutoGradMode gradients(true);
  return kept.part(x);
}

Tensor leaf_of(const Tensor& x, bool needs_gradient) { return x.detach().requires_grad_(needs_gradient); }

class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  // `anchor` is a tensor with gradient: without it a part whose parameters alone are trained would have no backward
  // pass.
  static std::vector<Tensor> forward(torch::autograd::AutogradContext* context, const Tensor& x,
                                     const Tensor& /*anchor*/, bool x_has_gradient, const std::shared_ptr<Kept>& kept) {
    std::vector<Tensor> outputs = run(*kept, leaf_of(x, x_has_gradient)), constant;
    for (Tensor& output : outputs) {
      const bool has_gradient = output.requires_grad();
      output = output.detach();
      if (!has_gradient) constant.push_back(output);
    }
    context->mark_non_differentiable(constant);
    context->save_for_backward({x});
    context->saved_data["x_has_gradient"] = x_has_gradient;
    context->saved_data["kept"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(kept));
    return outputs;
  }

  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> gradients) {
    const bool x_has_gradient = context->saved_data["x_has_gradient"].toBool();
    const Tensor x = leaf_of(context->get_saved_variables()[0], x_has_gradient);
    const auto capsule = context->saved_data["kept"].toCapsule();
    const Kept& kept = *static_cast<const Holder&>(*capsule).kept;
    std::vector<Tensor> outputs = run_again(kept, x), roots, of_roots;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].requires_grad() || !gradients[i].defined()) continue;
      roots.push_back(outputs[i]), of_roots.push_back(gradients[i]);
    }
    outputs.clear();
    if (!roots.empty()) torch::autograd::backward(roots, of_roots);
    return {x.grad(), Tensor(), Tensor(), Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<Kept> given) : kept(std::move(given)) {}
    std::shared_ptr<Kept> kept;
  };

  static std::vector<Tensor> run_again(const Kept& kept, const Tensor& x) {
    const Autocast autocast(x.device(), kept.autocast);
    if (!kept.state.defined()) return run(kept, x);
    at::Generator generator = generator_of(x);
    const Tensor now = state_of(generator);
    set_state(generator, kept.state);
    std::vector<Tensor> outputs = run(kept, x);
    set_state(generator, now);
    return outputs;
  }
};

}  // namespace

std::vector<Tensor> recomputed(const Tensor& x, bool random, Part part) {
  if (!at::GradMode::is_enabled()) return part(x);
  auto kept = std::make_shared<Kept>();
  kept->part = std::move(part), kept->autocast = is_autocast_on(x.device());
  if (random) {
    at::Generator generator = generator_of(x);
    kept->state = state_of(generator);
  }
  const Tensor anchor = at::empty({0}, x.options().dtype(at::kFloat)).requires_grad_(true);
  return Recomputed::apply(x, anchor, x.requires_grad(), kept);
}

}  // namespace peft::nn
