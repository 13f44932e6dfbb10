// Products of rows sorted by expert, against products written out; gradients in fp64.
#include "nn/kernels/grouped.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "nn/model/network.h"

namespace peft::nn {
namespace {

struct Case {
  std::int64_t tokens, top_k, experts, in, out;
};
constexpr Case kCases[] = {{1, 1, 1, 3, 5},     {1, 4, 9, 33, 70}, {7, 2, 5, 16, 8},
                           {40, 3, 64, 20, 24}, {5, 8, 8, 130, 3}, {64, 2, 3, 9, 31}};

Tensor by_hand(const Tensor& x, const Tensor& weight, const ExpertGroups& groups) {
  return at::matmul(weight.index_select(0, groups.expert), x.unsqueeze(2)).squeeze(2);
}

class Grouped : public ::testing::TestWithParam<Case> {
 protected:
  Grouped() {
    at::manual_seed(3);
    const Case& c = GetParam();
    indices_ = at::rand({c.tokens, c.experts}).argsort(1, false).narrow(1, 0, c.top_k).contiguous();
    groups_ = group_by_expert(indices_, c.experts);
    x_ = at::randn({c.tokens, c.in}, at::kDouble).index_select(0, groups_.token);
    weight_ = at::randn({c.experts, c.out, c.in}, at::kDouble);
  }
  Tensor indices_, x_, weight_;
  ExpertGroups groups_;
};

TEST_P(Grouped, RowsAreSortedAndFoundAgain) {
  const Tensor flat = indices_.reshape({-1});
  EXPECT_TRUE(groups_.expert.equal(std::get<0>(flat.sort())));
  EXPECT_TRUE(flat.index_select(0, groups_.choice).equal(groups_.expert));
  EXPECT_TRUE(groups_.expert.index_select(0, groups_.inverse).equal(flat));
  EXPECT_TRUE(groups_.token.equal(groups_.choice.floor_divide(GetParam().top_k)));
  EXPECT_EQ(groups_.rows(), flat.numel());
}

TEST_P(Grouped, IsTheProductOfEachRowWithItsMatrix) {
  at::NoGradGuard no_gradients;
  const Tensor expected = by_hand(x_, weight_, groups_);
  const double peak = expected.abs().max().item<double>();
  const auto difference = [&](const Tensor& got) {
    return (got.to(at::kDouble) - expected).abs().max().item<double>() / peak;
  };
  EXPECT_LE(difference(grouped_linear(x_, weight_, groups_)), 1e-13);
  EXPECT_LE(difference(grouped_linear(x_.to(at::kFloat), weight_.to(at::kFloat), groups_)), 1e-5);
  EXPECT_LE(difference(grouped_linear(x_.to(at::kBFloat16), weight_.to(at::kBFloat16), groups_)), 3e-2);
  const Tensor turned = weight_.to(at::kFloat).transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_LE(difference(grouped_linear(x_.to(at::kFloat), turned, groups_)), 1e-5);
}

TEST_P(Grouped, GradientsAreThoseOfTheProductWrittenOut) {
  const Tensor goal = at::randn({groups_.rows(), GetParam().out}, at::kDouble);
  std::vector<Tensor> gradients;
  for (const bool ours : {true, false}) {
    const Tensor x = x_.clone().requires_grad_(true), weight = weight_.clone().requires_grad_(true);
    const Tensor y = ours ? grouped_linear(x, weight, groups_) : by_hand(x, weight, groups_);
    (y * goal).sum().backward();
    gradients.push_back(x.grad()), gradients.push_back(weight.grad());
  }
  EXPECT_TRUE(gradients[0].allclose(gradients[2], 1e-12, 1e-12));
  EXPECT_TRUE(gradients[1].allclose(gradients[3], 1e-12, 1e-12));
}

INSTANTIATE_TEST_SUITE_P(Shapes, Grouped, ::testing::ValuesIn(kCases));

// One row or many, the own loops and the library's product agree.
TEST(Linear, FewRowsAndMany) {
  at::manual_seed(4);
  at::NoGradGuard no_gradients;
  Linear linear;
  linear.weight = at::randn({37, 61}), linear.bias = at::randn({37});
  for (const std::int64_t rows : {1, 3, 4, 5, 20}) {
    const Tensor x = at::randn({rows, 61});
    EXPECT_TRUE(linear.compute(x).allclose(at::linear(x, linear.weight, linear.bias), 1e-5, 1e-4)) << rows;
    const Tensor strided = at::randn({rows, 122}).narrow(1, 61, 61);
    EXPECT_TRUE(linear.compute(strided).allclose(at::linear(strided, linear.weight, linear.bias), 1e-5, 1e-4)) << rows;
  }
}

}  // namespace
}  // namespace peft::nn
