// A program outside the tree that uses the installed runtime: a tiny model, one forward pass.
#include <ATen/ATen.h>
#include <peft/nn/model.h>

#include <fstream>
#include <iostream>
#include <set>
#include <string>

// Two would be two pools of threads.
std::size_t openmp_runtimes() {
  std::set<std::string> paths;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    for (const char* name : {"/libgomp", "/libomp", "/libiomp"}) {
      if (line.find(name) != std::string::npos) paths.insert(line.substr(line.find('/')));
    }
  }
  return paths.size();
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto model = peft::nn::init_model(argv[1], {.seed = 1});
  const at::Tensor ids = at::tensor({1, 2, 3, 4}, at::kLong).unsqueeze(0);
  std::size_t steps = 0;
  const peft::nn::Recorder count = [&steps](const std::string&, const at::Tensor&) { ++steps; };
  peft::nn::ForwardContext context;
  context.recorder = &count;
  const at::Tensor logits = model->forward({.ids = ids}, context).logits;
  // logits() runs without gradients, on other kernels that round otherwise.
  const bool finite = at::isfinite(logits).all().item<bool>() && steps > 0 && logits.allclose(model->logits(ids), 1e-5, 1e-6);
  std::cout << model->model_type() << ": " << model->parameter_count() << " parameters, " << logits.size(1)
            << " tokens, " << (finite ? "finite" : "not finite") << ", " << openmp_runtimes() << " OpenMP runtimes\n";
}
