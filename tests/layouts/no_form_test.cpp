// What a layout cannot hold is refused when it is encoded: nothing is put where it does not belong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "layout/encode/encode.h"
#include "peft/execute.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kExperts = 3, kHidden = 8, kIntermediate = 6, kRank = 2;

struct GptOss {
  TemporaryFolder folder;
  Model model;
  std::shared_ptr<const TensorFile> file;

  GptOss() {
    const Json config = {{"model_type", "gpt_oss"},
                         {"hidden_size", kHidden},
                         {"intermediate_size", kIntermediate},
                         {"num_hidden_layers", 1},
                         {"num_local_experts", kExperts},
                         {"num_attention_heads", 1},
                         {"num_key_value_heads", 1},
                         {"head_dim", 8},
                         {"vocab_size", 5}};
    write_file(folder / "config.json", config.dump());
    model = describe({.base = folder / "config.json"});
    Draw draw(1);
    const Matrix a = draw.matrix(kRank, kHidden, 1, 5), b = draw.matrix(2 * kIntermediate, kRank, 1, 5);
    Matrix apart(2 * kIntermediate, kRank);
    for (std::int64_t i = 0; i < 2 * kIntermediate; ++i)
      for (std::int64_t k = 0; k < kRank; ++k) apart.at(i % 2 * kIntermediate + i / 2, k) = b.at(i, k);
    write_file(folder / "a.safetensors",
               safetensors_of({stored("a", "F32", a), stored("b", "F32", b), stored("apart", "F32", apart)}));
    file = TensorFile::open(folder / "a.safetensors");
  }
  // Gate and up share A; their rows of B alternate in the file, or lie one behind the other: the same numbers.
  Factors factors(bool alternate, double up_scale = 2) const {
    const auto number = [&](std::string_view name) {
      return static_cast<std::uint32_t>(file->find(name) - file->tensors().data());
    };
    const View a{0, number("a"), 0, kRank, kHidden, kHidden, 1},
        b{0, number(alternate ? "b" : "apart"), 0, 2 * kIntermediate, kRank, kRank, 1};
    Factors all;
    for (std::int64_t e = 0; e < kExperts; ++e) {
      for (const std::int64_t which : {0, 1}) {
        Factor factor;
        factor.site = {"model.layers.0.mlp.experts", "", e, which == 0 ? Projection::gate : Projection::up};
        factor.in = kHidden, factor.out = kIntermediate, factor.rank = kRank;
        factor.scale = which == 0 ? 2 : up_scale;
        factor.a = a;
        factor.b = alternate ? b.row_range(which, kIntermediate, 2) : b.row_range(which * kIntermediate, kIntermediate);
        all.factors.push_back(factor);
      }
    }
    return all;
  }
};

// Where gate and up alternate in the target, they may lie in the file as they like.
TEST(NoForm, GateAndUpThatAlternateMayLieApartInTheFile) {
  const GptOss fixture;
  for (const Layout to : {Layout::peft_fused, Layout::peft_fused_0_19_0}) {
    const auto written = [&](const Factors& factors, bool block_diagonal) {
      Plan plan;
      plan.sources = {fixture.file};
      plan.files.push_back(
          {"x.safetensors",
           layout::encode(factors, fixture.model, fixture.file.get(), {to, std::nullopt, block_diagonal}).tensors});
      return execute_in_memory(plan).front();
    };
    EXPECT_EQ(written(fixture.factors(true), false), written(fixture.factors(false), false)) << info(to).name;
    EXPECT_EQ(written(fixture.factors(true), true), written(fixture.factors(false), true)) << info(to).name;
    EXPECT_EQ(written(fixture.factors(true, 4), false), written(fixture.factors(false, 4), false)) << info(to).name;
    EXPECT_NE(written(fixture.factors(true, 4), false), written(fixture.factors(true), false));
  }
}

}  // namespace
}  // namespace peft::testing
