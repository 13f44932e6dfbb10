#include "torch_cli/logits.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/fs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <span>

#include "base/system.h"
#include "base/text.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "cli/runtime/runtime.h"
#include "peft/error.h"
#include "peft/safetensors.h"
#include "safetensors/writing/staged_output.h"
#include "torch_cli/running_model.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;

const ErrorReason kExists = {.problem = "the output exists", .hint = "choose another path, or --overwrite"};

// So that the rename itself is on the disk.
void sync_folder_of(const std::string& path) {
  const std::string folder = fs::absolute(path).parent_path().string();
  SystemCalls& calls = SystemCalls::get();
  const int fd = calls.open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) return;  // a folder that can be written and not read
  calls.fsync(fd);
  calls.close(fd);
}

void move_into_place(const std::string& from, const std::string& to, bool overwrite) {
  SystemCalls& calls = SystemCalls::get();
  if (calls.rename(from.c_str(), to.c_str(), overwrite ? 0 : RENAME_NOREPLACE) == 0) return sync_folder_of(to);
  const int error = errno;
  calls.unlink(from.c_str());
  if (error == EEXIST) at(to).fail(ErrorCode::OUT_EXISTS, kExists);
  peft::at(to).fail(ErrorCode::IO_WRITE, {.problem = fmt::format("cannot be written: {}", std::strerror(error))});
}

// Called before the work: throws OUT_EXISTS if the file exists and may not be replaced.
void require_free(const std::string& path, bool overwrite) {
  const fs::file_status status = fs::symlink_status(path);
  if (fs::is_directory(status))
    peft::at(path).fail(ErrorCode::IO_KIND, {.problem = "a folder, where a file is to be written"});
  if (fs::exists(status) && !overwrite) at(path).fail(ErrorCode::OUT_EXISTS, kExists);
  const fs::path folder = fs::absolute(path).parent_path();
  if (!fs::is_directory(folder))
    peft::at(path).fail(ErrorCode::IO_WRITE, {.problem = "the folder it is to stand in does not exist"});
}

// `tensor` as F32 under `name`: written beside `path`, synced, renamed.
void write_tensor(const std::string& path, const std::string& name, const at::Tensor& tensor, bool overwrite) {
  const at::Tensor values = tensor.to(at::kCPU, at::kFloat).contiguous();
  const NewTensor entry{name, Dtype::f32, values.sizes().vec()};
  const FileLayout layout = layout_file(std::span(&entry, 1));
  const std::string partial = fmt::format("{}.partial-peft-{}", path, getpid());
  try {
    NewFile file(partial, layout.file_bytes());
    file.write_at(0, std::as_bytes(std::span(layout.head)));
    file.write_at(layout.head.size(), {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()});
    file.close(true);
  } catch (...) {
    SystemCalls::get().unlink(partial.c_str());
    throw;
  }
  move_into_place(partial, path, overwrite);
}

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

}  // namespace

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
    cli::write_out(fmt::format("logits F32 {} in {}: {}\n", shape_text(logits.sizes().vec()),
                               cli::human_seconds(seconds), printable(command.out)));
  }
  return 0;
}

}  // namespace peft::torch_cli

namespace peft::cli {

int run(const LogitsCommand& command) { return torch_cli::run_guarded<LogitsCommand, torch_cli::run_logits>(command); }

}  // namespace peft::cli
