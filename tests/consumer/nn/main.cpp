// A program outside the tree that uses the installed runtime: a tiny model, one forward pass.
#include <ATen/ATen.h>
#include <peft/nn/model.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto model = peft::nn::init_model(argv[1], {.seed = 1});
  const at::Tensor logits = model->logits(at::tensor({1, 2, 3, 4}, at::kLong).unsqueeze(0));
  const bool finite = at::isfinite(logits).all().item<bool>();
  std::cout << model->model_type() << ": " << model->parameter_count() << " parameters, " << logits.size(1)
            << " tokens, " << (finite ? "finite" : "not finite") << "\n";
}
