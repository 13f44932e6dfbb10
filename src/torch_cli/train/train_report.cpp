#include "torch_cli/train/train_report.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>

#include "cli/report/data.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "tokenizer/tokenizer.h"

namespace peft::torch_cli {
namespace {

constexpr std::size_t kSamples = 4;
constexpr std::int64_t kBeginning = 256, kAnswer = 48;  // tokens at most

// What stands before the first token that is learnt; half of a row in which all are.
std::vector<std::int64_t> beginning_of(const train::Row& row) {
  std::size_t end = 0;
  while (end < row.labels.size() && row.labels[end] == train::kIgnored) ++end;
  const std::size_t length = row.documents.empty() ? row.ids.size() : static_cast<std::size_t>(row.documents.front());
  if (end == 0 || end >= length) end = std::max<std::size_t>(1, length / 2);
  const std::size_t first = end > kBeginning ? end - kBeginning : 0;
  return {row.ids.begin() + static_cast<std::ptrdiff_t>(first), row.ids.begin() + static_cast<std::ptrdiff_t>(end)};
}

class Writer {
 public:
  explicit Writer(const std::string& base) {
    if (!std::filesystem::exists(std::filesystem::path(base) / "tokenizer.json")) return;
    try {
      tokenizer_ = std::make_unique<Tokenizer>(base);
    } catch (const Error&) {  // token ids say it as well
    }
  }
  std::string text(const std::vector<std::int64_t>& ids) {
    return tokenizer_ ? tokenizer_->decode(ids, false) : fmt::format("{}", fmt::join(ids, " "));
  }

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
};

// ||B A||^2 = <B^T B, A A^T>, summed in fp64.
double squared_norm(const TensorFile& file, const Factor& factor) {
  const std::vector<double> a = to_matrix(file, factor.a), b = to_matrix(file, factor.b);
  const std::int64_t rank = factor.a.rows, in = factor.a.cols, out = factor.b.rows;
  double sum = 0;
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t j = 0; j < rank; ++j) {
      double of_a = 0, of_b = 0;
      for (std::int64_t c = 0; c < in; ++c)
        of_a += a[static_cast<std::size_t>(i * in + c)] * a[static_cast<std::size_t>(j * in + c)];
      for (std::int64_t r = 0; r < out; ++r)
        of_b += b[static_cast<std::size_t>(r * rank + i)] * b[static_cast<std::size_t>(r * rank + j)];
      sum += of_a * of_b;
    }
  }
  return factor.scale * factor.scale * sum;
}

}  // namespace

std::vector<cli::TrainSample> train_samples(nn::PeftModel& model, const std::string& base, const train::Dataset& data) {
  const at::NoGradGuard no_gradients;
  Writer writer(base);
  nn::GenerateOptions options = nn::generation_defaults(base);
  options.max_new_tokens = kAnswer, options.temperature = 0;
  const auto answer = [&](const std::vector<std::int64_t>& beginning) {
    const at::Tensor ids = at::tensor(beginning, at::kLong).unsqueeze(0).to(model.base()->device());
    std::vector<std::int64_t> row = model.generate(ids, {}, options).front();
    const auto end = std::ranges::find_first_of(row, options.eos_token_ids);
    if (end != row.end()) row.erase(end + 1, row.end());
    return writer.text(row);
  };
  std::vector<cli::TrainSample> samples;
  for (std::size_t i = 0; i < std::min(kSamples, data.rows.size()); ++i) {
    const std::vector<std::int64_t> beginning = beginning_of(data.rows[i]);
    cli::TrainSample& sample = samples.emplace_back();
    sample.beginning = writer.text(beginning), sample.after = answer(beginning);
    const auto disabled = model.disable_adapter();
    sample.before = answer(beginning);
  }
  return samples;
}

cli::LayerCells learnt_norms(const std::string& adapter, const std::string& base) {
  InputOptions options;
  options.base = base;
  const Input input = load(adapter, options);
  cli::LayerCells squares;
  for (const Factor& factor : input.reading.factors.factors) {
    const cli::SitePlace place = cli::place_of(factor.site);
    squares[place.layer][factor.site.expert >= 0 ? "experts." + place.part : place.part] +=
        squared_norm(*input.adapter.weights, factor);
  }
  for (auto& [layer, modules] : squares) {
    for (auto& [name, square] : modules) square = std::sqrt(square);
  }
  return squares;
}

}  // namespace peft::torch_cli
