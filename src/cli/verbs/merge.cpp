#include "cli/verbs/merge.h"

#include <fmt/chrono.h>
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>
#include <sstream>

#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "cli/report/report.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

// One entry for each update, with what execute() measured of it.
Json parts_json(const MergePlan& merge, const ExecuteReport* report) {
  std::map<std::tuple<std::size_t, std::size_t, std::size_t>, const MergedMatrix*> measured;
  if (report != nullptr) {
    for (const MergedMatrix& matrix : report->merged) measured[{matrix.file, matrix.tensor, matrix.update}] = &matrix;
  }
  Json list = Json::array();
  for (const MergedPart& part : merge.parts) {
    const PlannedTensor& tensor = merge.plan.files[part.file].tensors[part.tensor];
    Json json = {{"tensor", tensor.name},       {"file", merge.plan.files[part.file].name},
                 {"site", describe(part.site)}, {"rule", name(part.rule)},
                 {"adapter", part.adapter},     {"use_dora", part.dora}};
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

std::string packed_type(const Plan& plan, const PackedTensor& packed) {
  return std::string(type_name(plan.files[packed.file].tensors[packed.tensor]));
}

Json packed_json(const Plan& plan, const ExecuteReport& report) {
  Json list = Json::array();
  for (const PackedTensor& packed : report.packed) {
    list.push_back({{"tensor", plan.files[packed.file].tensors[packed.tensor].name},
                    {"type", packed_type(plan, packed)},
                    {"delta_norm", number(packed.delta_norm)},
                    {"error_norm", number(packed.error_norm)},
                    {"delta_kept", number(packed.kept)}});
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
  if (!report->packed.empty()) json["packed"] = packed_json(merge.plan, *report);
  if (report->error.sampled > 0) {
    json["error"] = {{"sampled", report->error.sampled},
                     {"different", report->error.different},
                     {"max_ulps", number(report->error.max_ulps)}};
  }
  return json;
}

struct PackedSums {
  std::size_t tensors = 0;
  double delta = 0, error = 0, kept = 0;  // squares; kept: of the part of each delta that is there
  const PackedTensor* least = nullptr;    // of whose delta the least is kept
};

// What storing in quantised types cost, by type.
std::vector<std::string> packed_lines(const Plan& plan, const ExecuteReport& report) {
  std::map<std::string, PackedSums> by_type;
  for (const PackedTensor& packed : report.packed) {
    PackedSums& sums = by_type[packed_type(plan, packed)];
    const double delta = packed.delta_norm * packed.delta_norm;
    ++sums.tensors;
    sums.delta += delta, sums.error += packed.error_norm * packed.error_norm, sums.kept += packed.kept * delta;
    if (sums.least == nullptr || packed.kept < sums.least->kept) sums.least = &packed;
  }
  std::vector<std::string> lines;
  for (const auto& [type, sums] : by_type) {
    if (sums.delta == 0) continue;
    lines.push_back(
        fmt::format("{}: {} tensors rounded to it again; {:.1f} % of the deltas is kept (least: {:.1f} % of {}), error "
                    "{:.3g} times "
                    "the deltas",
                    type, sums.tensors, 100 * sums.kept / sums.delta, 100 * sums.least->kept,
                    printable(plan.files[sums.least->file].tensors[sums.least->tensor].name, 200),
                    std::sqrt(sums.error / sums.delta)));
  }
  return lines;
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
    const std::string how = part.update < 0 ? std::string(name(part.rule))
                                            : fmt::format("{}{}, rank {}, scale {:.6g}", name(part.rule),
                                                          part.dora ? " DoRA" : "", part.rank, part.scale);
    write_out(fmt::format("  {}  <-  {} of adapter {} ({})\n", printable(tensor, 200),
                          printable(describe(part.site), 200), part.adapter + 1, how));
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
  write_out(fmt::format("merged {} adapter{} ({}): {} tensors changed, {} copied, {} in {}, {}\n", merge.digests.size(),
                        merge.digests.size() == 1 ? "" : "s", command.mode, merge.changed, merge.copied,
                        human_bytes(report.bytes_out), human_seconds(report.seconds), checks_text(command.execute)));
  for (const std::string& line : packed_lines(merge.plan, report)) write_out(line + "\n");
  if (report.error.sampled > 0) {
    write_out(fmt::format(
        "error: {} of {} sampled elements are not the exact sum rounded once, at most {:.3g} last places off\n",
        report.error.different, report.error.sampled, report.error.max_ulps));
  }
  write_out(printable(command.out, 4096) + "\n");
}

constexpr const char* kMergeExamples = R"(Examples:
  peft merge --base Qwen3-30B-A3B --adapter my-lora --out merged
  peft merge --base M --adapter a@0.7 --adapter b@-0.4 --out merged     several, each with a weight
  peft merge --base M --adapter my-lora --dry-run                      what would change, and what it costs
  peft merge --base gpt-oss-20b --adapter my-lora --out merged         MXFP4 is written as bf16, about four times its bytes
  peft merge --base M --adapter my-lora --out merged --report merged.html   a page for whoever gets the model
  peft merge --base M --adapter my-lora --out merged --resume          go on where a run was stopped
  peft merge --base M --adapter my-lora --out merged --part 3/8        one of eight machines; --finish when all are done
  peft merge --base M --adapter my-lora --mode peft --out merged       the bits of PEFT's merge_and_unload()
  peft merge --base model-Q4_0.gguf --adapter my-lora --out merged.gguf --keep-quantized   a model for llama.cpp

The output is a whole model in the base's own names; it appears complete and checked, or not at all.)";

void add_rounding(CLI::App& verb, MergeCommand& command) {
  verb.add_option(
          "--mode", command.mode,
          "How it rounds: once (best), as PEFT's merge_and_unload (peft) or with safe_merge (peft-safe), or the "
          "quickest way, its error printed (fast)")
      ->capture_default_str()
      ->type_name("best|peft|peft-safe|fast")
      ->check(quiet(CLI::IsMember({"best", "peft", "peft-safe", "fast"})));
  verb.add_option("--base-dtype", command.base_dtype, "Cast the base first, as loading it with this dtype does")
      ->type_name("T");
  verb.add_option("--out-dtype", command.out_dtype,
                  "Round the result to this; the base's own when not given (GGUF: also Q8_0)")
      ->type_name("T");
  verb.add_flag("--keep-quantized", command.keep_quantized,
                "Leave quantised tensors as they are where no adapter changes them; GGUF: write those that change as "
                "Q8_0, Q4_0 or MXFP4 again");
}

void add_resuming(CLI::App& verb, MergeCommand& command) {
  verb.add_flag("--resume", command.resume, "Go on where a run was stopped: its finished files are checked and used")
      ->group("Long runs");
  verb.add_flag("--trust-journal", command.execute.trust_journal,
                "Compare sizes and headers of finished files, not their contents")
      ->group("Long runs");
  auto* part = verb.add_option("--part", command.part,
                               "Write only part I of N of the files; the parts may run at once, "
                               "on several machines")
                   ->type_name("I/N")
                   ->group("Long runs");
  verb.add_flag("--finish", command.execute.finish, "Check that all parts are there, and make the output of them")
      ->excludes(part)
      ->group("Long runs");
}

void add_output(CLI::App& verb, MergeCommand& command) {
  verb.add_option("--max-shard-size", command.max_shard_size,
                  "New shards of at most this, such as 5GB; the base's own shards when not given")
      ->type_name("SIZE");
  verb.add_option("--report", command.report, "Write a page (HTML, complete in itself) that says what changed where")
      ->type_name("FILE");
  verb.add_flag("--dry-run", command.dry_run, "Print the plan; write nothing");
  add_execute_flags(verb, command.execute, command.quiet);
  add_json(verb, command.json);
}

MergeOptions merge_options(const MergeCommand& command) {
  MergeOptions options;
  options.base = command.base;
  for (const std::string& text : command.adapters) options.adapters.push_back(parse_weighted_adapter(text));
  options.input = command.input.options();
  options.mode = parse_merge_mode(command.mode).value_or(MergeMode::best);
  options.base_dtype = parse_optional_dtype("--base-dtype", command.base_dtype);
  options.out_q8_0 = command.out_dtype == kQ8;
  if (!options.out_q8_0) options.out_dtype = parse_optional_dtype("--out-dtype", command.out_dtype);
  options.one_file = command.out.ends_with(".gguf");
  if (!command.max_shard_size.empty()) options.max_shard_size = parse_size(command.max_shard_size);
  options.keep_quantized = command.keep_quantized;
  options.base_is_residual = command.base_is_residual;
  options.allow_repeat = command.allow_repeat;
  return options;
}

// Without progress and cancellation.
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

std::string command_line(const MergeCommand& command) {
  std::string text = "peft merge --base " + command.base;
  for (const auto& adapter : command.adapters) text += " --adapter " + adapter;
  text += " --out " + command.out + " --mode " + command.mode;
  const std::pair<const char*, const std::string&> options[] = {{"--base-dtype", command.base_dtype},
                                                                {"--out-dtype", command.out_dtype},
                                                                {"--max-shard-size", command.max_shard_size}};
  for (const auto& [flag, value] : options) {
    if (!value.empty()) text += fmt::format(" {} {}", flag, value);
  }
  if (command.resume) text += " --resume";
  if (command.execute.finish) text += " --finish";
  if (command.keep_quantized) text += " --keep-quantized";
  return text;
}

// --report describes a whole merge that was done.
void refuse_partial_report(const MergeCommand& command) {
  if (command.dry_run) {
    at({}).fail(ErrorCode::USAGE, {.problem = "--report describes a merge that was done, and --dry-run does none",
                                   .hint = "leave one out"});
  }
  if (!command.part.empty()) {
    at({}).fail(ErrorCode::USAGE,
                {.problem = "--report is about a whole merge, not a part of it", .hint = "give it with --finish"});
  }
}

ReportFacts report_facts(const MergeCommand& command) {
  ReportFacts facts;
  facts.file = command.report;
  facts.out = command.out;
  facts.options = merge_options(command);
  facts.command = command_line(command);
  facts.synced = command.execute.sync;
  facts.read_back = command.execute.readback;
  const auto now = std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  facts.finished = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(std::chrono::system_clock::to_time_t(now)));
  return facts;
}

struct Merged {
  MergeCommand command;
  MergePlan merge;
  std::optional<ExecuteReport> done;  // absent: a dry run
};

// Plans, and unless it is a dry run, writes the model and the page.
Merged carry_out(const MergeCommand& given, const Executor& execute) {
  MergeCommand command = given;
  command.base = given.input.base;
  require_out(command.out, command.dry_run);
  if (!command.report.empty()) {
    refuse_partial_report(command);
    check_report(command.report);
  }
  const ExecuteOptions resolved = execute_options(command);  // a wrong --part is said before the base is read
  Merged merged{std::move(command), {}, {}};
  merged.merge = plan_merge(merge_options(merged.command));
  if (given.dry_run) return merged;
  ExecuteOptions options = resolved;
  options.want_norms = given.json || !given.report.empty();
  merged.done = execute(merged.merge.plan, given.out, options);
  if (!given.report.empty()) write_report(report_facts(merged.command), merged.merge, *merged.done);
  return merged;
}

Json to_json(const Merged& merged) {
  return to_json(merged.command, merged.merge, merged.done ? &*merged.done : nullptr);
}

}  // namespace

Json result(const MergeCommand& command, const Executor& execute) { return to_json(carry_out(command, execute)); }

int run(const MergeCommand& command) {
  const Merged merged = carry_out(command, [&](const Plan& plan, const std::string& out, ExecuteOptions options) {
    return execute_shown(plan, out, std::move(options), command.quiet, true);
  });
  if (command.json)
    print_json(to_json(merged));
  else if (!merged.done)
    print_dry_run(merged.merge);
  else
    print_done(merged.command, merged.merge, *merged.done);
  return 0;
}

void add_merge(CLI::App& app, MergeCommand& command) {
  auto& verb = *app.add_subcommand("merge", "Add adapters to a model on disk, and write the model");
  auto* adapter =
      verb.add_option("--adapter", command.adapters, "An adapter, with its weight; may be given several times");
  adapter->required()->type_name("DIR@WEIGHT")->expected(1)->take_all()->allow_extra_args(false);
  verb.add_option("--out", command.out, "The folder to write (of a base in GGUF: the file)")->type_name("DIR");
  add_rounding(verb, command);
  verb.add_flag("--base-is-residual", command.base_is_residual,
                "The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original model");
  verb.add_flag("--allow-repeat", command.allow_repeat, "Add an adapter that the base already holds");
  add_output(verb, command);
  add_resuming(verb, command);
  add_input_flags(verb, command.input, false);
  verb.get_option("--base")->required()->description("The base model's folder, or its GGUF file")->group("Options");
  verb.footer(kMergeExamples);
}

}  // namespace peft::cli
