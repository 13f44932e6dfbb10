#include "cli/merge.h"

#include <fmt/core.h>
#include <unistd.h>

#include <charconv>
#include <map>
#include <sstream>

#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/output.h"
#include "cli/progress_bar.h"
#include "cli/report_file.h"
#include "cli/units.h"

namespace peft::cli {
namespace {

std::optional<Dtype> dtype_of(const std::string& flag, const std::string& value) {
  return value.empty() ? std::nullopt : std::optional(parse_dtype_flag(flag, value));
}

// One entry for each update, with what execute() measured of it.
Json parts_json(const MergePlan& merge, const ExecuteReport* report) {
  std::map<std::tuple<std::size_t, std::size_t, std::size_t>, const MergedMatrix*> measured;
  if (report != nullptr) {
    for (const MergedMatrix& matrix : report->merged) measured[{matrix.file, matrix.tensor, matrix.update}] = &matrix;
  }
  Json list = Json::array();
  for (const MergedPart& part : merge.parts) {
    const PlannedTensor& tensor = merge.plan.files[part.file].tensors[part.tensor];
    Json json = {{"tensor", tensor.name},   {"file", merge.plan.files[part.file].name},
                 {"site", part.site},       {"rule", part.rule},
                 {"adapter", part.adapter}, {"use_dora", part.dora}};
    if (part.update >= 0) {
      json["r"] = part.rank;
      json["scaling"] = number(part.scale);
      json["exactness"] = name(merge.plan.exactness);
      const auto found = measured.find({part.file, part.tensor, static_cast<std::size_t>(part.update)});
      if (found != measured.end()) {
        json["base_norm"] = number(found->second->base_norm);
        json["delta_norm"] = number(found->second->delta_norm);
      }
    } else {
      json["exactness"] = name(Exactness::bit_exact);
    }
    list.push_back(std::move(json));
  }
  return list;
}

Json to_json(const MergeCommand& command, const MergePlan& merge, const ExecuteReport* report) {
  Json adapters = Json::array();
  for (std::size_t i = 0; i < command.adapters.size(); ++i) {
    const WeightedAdapter given = parse_weighted_adapter(command.adapters[i]);
    adapters.push_back({{"path", given.path},
                        {"weight", number(given.weight)},
                        {"layout", merge.layouts[i]},
                        {"digest", merge.digests[i]}});
  }
  Json json = {{"base", command.base},
               {"adapters", adapters},
               {"mode", command.mode},
               {"exactness", name(merge.plan.exactness)},
               {"tensors_changed", merge.changed},
               {"tensors_copied", merge.copied},
               {"tensors_dequantized", merge.dequantized},
               {"untied", merge.untied},
               {"zero_deltas", sorted(merge.zero_deltas)},
               {"unused", merge.unused},
               {"warnings", merge.plan.warnings},
               {"tensors", parts_json(merge, report)}};
  if (report == nullptr) {
    json["plan"] = plan_json(merge.plan);
    json["seconds_estimate"] = number(merge.seconds_estimate);
    return json;
  }
  json["out"] = command.out;
  json["bytes_in"] = report->bytes_in;
  json["bytes_out"] = report->bytes_out;
  json["files_written"] = report->files_written;
  json["files_resumed"] = report->files_resumed;
  json["published"] = report->published;
  json["seconds"] = report->seconds;
  if (report->error.sampled > 0) {
    json["error"] = {{"sampled", report->error.sampled},
                     {"different", report->error.different},
                     {"max_ulps", number(report->error.max_ulps)}};
  }
  return json;
}

void print_dry_run(const MergePlan& merge) {
  std::ostringstream text;
  text << merge.plan;
  write_out(text.str());
  constexpr std::size_t kShown = 40;
  std::size_t shown = 0;
  for (const MergedPart& part : merge.parts) {
    if (shown++ == kShown) break;
    const std::string& tensor = merge.plan.files[part.file].tensors[part.tensor].name;
    const std::string how = part.update < 0 ? part.rule
                                            : fmt::format("{}{}, rank {}, scale {:.6g}", part.rule,
                                                          part.dora ? " DoRA" : "", part.rank, part.scale);
    write_out(fmt::format("  {}  <-  {} of adapter {} ({})\n", printable(tensor, 200), printable(part.site, 200),
                          part.adapter + 1, how));
  }
  if (merge.parts.size() > kShown)
    write_out(fmt::format("  ... and {} more (--json lists all)\n", merge.parts.size() - kShown));
  write_out(fmt::format("disk {}, memory about {}, about {}\n", human_bytes(merge.plan.bytes_out),
                        human_bytes(merge.plan.peak_memory), human_seconds(merge.seconds_estimate)));
}

void print_done(const MergeCommand& command, const MergePlan& merge, const ExecuteReport& report) {
  write_warnings(merge.plan.warnings);
  write_warnings(report.warnings);
  if (report.files_resumed > 0)
    write_err(fmt::format("note: {} files of earlier runs were used\n", report.files_resumed));
  if (!report.published) {
    write_out(fmt::format("part {} of {}: {} files written, {}; --finish when all parts are done\n", command.part,
                          printable(command.out, 4096), report.files_written, human_bytes(report.bytes_out)));
    return;
  }
  std::string checks = command.execute.sync ? "synced" : "not synced";
  checks += command.execute.readback ? ", read back" : ", not read back";
  write_out(fmt::format("merged {} adapter{} ({}): {} tensors changed, {} copied, {} in {}, {}\n", merge.digests.size(),
                        merge.digests.size() == 1 ? "" : "s", command.mode, merge.changed, merge.copied,
                        human_bytes(report.bytes_out), human_seconds(report.seconds), checks));
  if (report.error.sampled > 0) {
    write_out(fmt::format(
        "error: {} of {} sampled elements are not the exact sum rounded once, at most {:.3g} last places off\n",
        report.error.different, report.error.sampled, report.error.max_ulps));
  }
  write_out(printable(command.out, 4096) + "\n");
}

}  // namespace

MergeOptions merge_options(const MergeCommand& command) {
  MergeOptions options;
  options.base = command.base;
  for (const std::string& text : command.adapters) options.adapters.push_back(parse_weighted_adapter(text));
  options.input = command.input.options();
  options.mode = parse_merge_mode(command.mode).value_or(MergeMode::best);
  options.base_dtype = dtype_of("--base-dtype", command.base_dtype);
  options.out_dtype = dtype_of("--out-dtype", command.out_dtype);
  if (!command.max_shard_size.empty()) options.max_shard_size = parse_size(command.max_shard_size);
  options.keep_quantized = command.keep_quantized;
  options.base_is_residual = command.base_is_residual;
  options.allow_repeat = command.allow_repeat;
  return options;
}

ExecuteOptions execute_options(const MergeCommand& command) {
  ExecuteOptions options = command.execute;
  options.unfinished = command.resume ? Unfinished::resume : Unfinished::keep;
  if (command.part.empty()) return options;
  const std::size_t slash = command.part.find('/');
  const auto number = [&](std::string_view text, int& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && !text.empty() && value >= 1;
  };
  const std::string_view text = command.part;
  if (slash == std::string::npos || !number(text.substr(0, slash), options.part) ||
      !number(text.substr(slash + 1), options.parts) || options.part > options.parts) {
    throw Error(ErrorCode::USAGE, {.problem = "--part is not a part", .expected = "1/N to N/N", .got = command.part});
  }
  return options;
}

int run(const MergeCommand& given) {
  MergeCommand command = given;
  command.base = given.input.base;
  if (command.out.empty() && !command.dry_run) {
    throw Error(ErrorCode::USAGE, {.problem = "--out is needed", .hint = "or --dry-run, to see what would be written"});
  }
  if (!command.report.empty()) check_report(command);
  const ExecuteOptions resolved = execute_options(command);  // a wrong --part is said before the base is read
  const MergePlan merge = plan_merge(merge_options(command));
  if (command.dry_run) {
    if (command.json)
      print_json(to_json(command, merge, nullptr));
    else
      print_dry_run(merge);
    return 0;
  }
  const InterruptGuard interrupt;
  using Style = ProgressBar::Style;
  ProgressBar bar(command.quiet ? Style::none : is_smart_terminal(STDERR_FILENO) ? Style::bar : Style::lines);
  ExecuteOptions options = resolved;
  options.cancel = interrupt.flag();
  options.want_norms = command.json || !command.report.empty();
  options.progress = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  const ExecuteReport report = execute(merge.plan, command.out, options);
  if (!command.report.empty()) write_report(command, merge, report);
  if (command.json)
    print_json(to_json(command, merge, &report));
  else
    print_done(command, merge, report);
  return 0;
}

}  // namespace peft::cli
