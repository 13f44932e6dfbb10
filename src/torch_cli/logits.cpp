// peft logits: one forward pass.
#include <ATen/ATen.h>
#include <fmt/core.h>

#include <chrono>

#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/runtime/runtime.h"
#include "cli/output/table.h"
#include "torch_cli/running_model.h"
#include "torch_cli/tensor_output.h"

namespace peft::torch_cli {
namespace {

constexpr std::int64_t kShown = 5;  // the likeliest next tokens of each row

struct Likely {
  std::int64_t id;
  double logit;
};

// The likeliest tokens after each row's last one, by logit, then id.
std::vector<std::vector<Likely>> likeliest(const at::Tensor& logits, const cli::Rows& mask) {
  std::vector<std::vector<Likely>> rows;
  for (std::int64_t row = 0; row < logits.size(0); ++row) {
    std::int64_t last = logits.size(1) - 1;
    while (!mask.empty() && mask[static_cast<std::size_t>(row)][static_cast<std::size_t>(last)] == 0) --last;
    const auto [values, ids] = logits[row][last].topk(std::min(kShown, logits.size(2)));
    auto& list = rows.emplace_back();
    for (std::int64_t i = 0; i < ids.size(0); ++i)
      list.push_back({ids[i].item<std::int64_t>(), values[i].item<double>()});
  }
  return rows;
}

cli::Json to_json(const std::vector<std::vector<Likely>>& rows) {
  cli::Json all = cli::Json::array();
  for (const auto& row : rows) {
    cli::Json list = cli::Json::array();
    for (const auto& token : row) list.push_back({{"id", token.id}, {"logit", cli::number(token.logit)}});
    all.push_back(std::move(list));
  }
  return all;
}

void print(const std::vector<std::vector<Likely>>& rows) {
  cli::Table table({{"row", cli::Align::right}, {"likeliest next tokens (logit)"}});
  for (std::size_t row = 0; row < rows.size(); ++row) {
    std::string text;
    for (const auto& token : rows[row])
      text += fmt::format("{}{} ({:.4f})", text.empty() ? "" : "  ", token.id, token.logit);
    table.add({std::to_string(row + 1), text});
  }
  cli::write_out(table.render());
}

int run_logits(const cli::LogitsCommand& command) {
  const cli::Rows ids = cli::parse_ids(command.ids), mask = cli::parse_mask(command.mask, ids);
  if (!command.out.empty()) require_free(command.out, command.overwrite);
  const RunningModel model = load(command.model);
  const at::Device device = model.base->device();
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor logits =
      model.logits(tensor_of(ids, device), tensor_of(mask, device)).to(at::kCPU, at::kFloat).contiguous();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!command.out.empty()) write_tensor(command.out, "logits", logits, command.overwrite);
  const auto next = likeliest(logits, mask);
  if (command.model.json) {
    cli::print_json({{"shape", logits.sizes().vec()},
                     {"next", to_json(next)},
                     {"seconds", cli::number(seconds)},
                     {"warnings", model.warnings},
                     {"out", command.out.empty() ? cli::Json(nullptr) : cli::Json(command.out)}});
    return 0;
  }
  print(next);
  if (!command.out.empty()) {
    cli::write_out(fmt::format("logits F32 {} in {}: {}\n", cli::shape_text(logits.sizes().vec()),
                               cli::human_seconds(seconds), printable(command.out)));
  }
  return 0;
}

}  // namespace
}  // namespace peft::torch_cli

namespace peft::cli {

int run(const LogitsCommand& command) { return torch_cli::run_guarded<LogitsCommand, torch_cli::run_logits>(command); }

}  // namespace peft::cli
