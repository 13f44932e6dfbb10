#include "cli/verbs/low_rank.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <span>
#include <sstream>

#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "cli/output/table.h"
#include "cli/report/data.h"
#include "peft/error.h"
#include "peft/verbs.h"

namespace peft::cli {
namespace {

// What a site is of its layer: "q_proj", "gate+up".
std::string part_of(const LowRankSite& site) {
  std::string part = place_of(site.sites.front()).part;
  for (const Site& further : std::span(site.sites).subspan(1)) part += "+" + std::string(name(further.projection));
  return part;
}

struct Row {
  std::string part;
  std::int64_t count = 0, least_rank = 0, most_rank = 0;
  double worst = 0, sum = 0;
};

std::vector<Row> rows_of(const LowRankResult& result) {
  std::vector<Row> rows;
  for (const LowRankSite& site : result.sites) {
    const std::string part = part_of(site);
    auto at = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.part == part; });
    if (at == rows.end()) at = rows.insert(rows.end(), {part, 0, site.rank, site.rank, 0, 0});
    ++at->count;
    at->least_rank = std::min(at->least_rank, site.rank);
    at->most_rank = std::max(at->most_rank, site.rank);
    at->worst = std::max(at->worst, site.relative);
    at->sum += site.relative;
  }
  return rows;
}

std::string rank_text(std::int64_t least, std::int64_t most) {
  return least == most ? std::to_string(least) : fmt::format("{} to {}", least, most);
}

Json to_json(const LowRankResult& result, Json json) {
  Json sites = Json::array();
  for (const LowRankSite& site : result.sites) {
    sites.push_back(
        {{"site", site.name}, {"rank", site.rank}, {"norm", number(site.norm)}, {"relative", number(site.relative)}});
  }
  json["sites"] = std::move(sites);
  json["worst"] = number(result.worst);
  json["mean"] = number(result.mean);
  json["where"] = result.where;
  json["left_out"] = result.left_out;
  json["unused"] = result.unused;
  json["notes"] = result.notes;
  json["warnings"] = result.plan.warnings;
  json["exactness"] = name(result.plan.exactness);
  return json;
}

void print(const ResultFlags& flags, const LowRankResult& result, const std::string& title,
           const std::optional<ExecuteReport>& done) {
  write_notes(result.notes);
  write_warnings(result.plan.warnings);
  std::string line = fmt::format("{}: {} matrices", bold(title, STDOUT_FILENO), result.sites.size());
  if (!result.left_out.empty()) line += fmt::format(", {} came out as zero and are left out", result.left_out.size());
  if (done) {
    line += fmt::format(", {} in {} ({}), {}", human_bytes(done->bytes_out), human_seconds(done->seconds),
                        name(result.plan.exactness), checks_text(flags.execute));
  }
  write_out(line + "\n");
  Table table({{"part"},
               {"matrices", Align::right},
               {"rank", Align::right},
               {"worst error", Align::right},
               {"mean", Align::right}});
  for (const Row& row : rows_of(result)) {
    table.add({row.part, std::to_string(row.count), rank_text(row.least_rank, row.most_rank),
               fmt::format("{:.3g}", row.worst), fmt::format("{:.3g}", row.sum / static_cast<double>(row.count))});
  }
  write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  write_out(fmt::format("error (of the norm of what was asked for): worst {:.3g} at {}, mean {:.3g}\n", result.worst,
                        printable(result.where), result.mean));
  if (done) write_out(printable(flags.out, 4096) + "\n");
}

constexpr const char* kCombineExamples = R"(Examples:
  peft combine a@0.7 b@-0.4 --type cat --out c                 exactly 0.7 a - 0.4 b; the ranks add up
  peft combine a@0.7 b@-0.4 --type svd --out c                 cut to the largest rank; the error is printed
  peft combine a b c --type ties_svd --density 0.3 --out d
  peft combine a b --type dare_linear_svd --density 0.5 --seed 1 --svd-rank 32 --out d
  peft combine v4-lora v5-lora --to peft-fused --base Qwen3-30B-A3B --out c

A weight follows the last @; 1 when there is none. Types without _svd that prune (ties, dare_*, magnitude_prune) work on
lora_A and lora_B apart, as PEFT does: only with _svd is the result what the papers describe.)";

constexpr const char* kResizeExamples = R"(Examples:
  peft resize my-lora --rank 8 --out small
  peft resize my-lora --rank 8 --dry-run                       what it would cost, matrix by matrix with --json
  peft resize my-lora --rank 8 --dtype BF16 --to peft-fused --out small

Exact up to rounding where the adapter's true rank is not above the new one; else the closest there is.)";

constexpr const char* kExtractExamples = R"(Examples:
  peft extract --base Qwen3-30B-A3B --finetuned my-merged --rank 16 --out lora
  peft extract --base v4-model --finetuned v5-model --rank 16 --to peft-per-expert --out lora
  peft extract --base M --finetuned N --rank 16 --modules-to-save norm --out lora

Matrices that did not change are left out; a rank below R is found where the difference has one.)";

void add_result_flags(CLI::App& verb, ResultFlags& flags, const std::string& to) {
  verb.add_option("--out", flags.out, "The folder to write")->type_name("DIR");
  verb.add_option(to, flags.to, "The layout to write: " + CLI::detail::join(layout_names(), ", "))->type_name("LAYOUT");
  verb.add_option("--dtype", flags.dtype,
                  "The dtype to write: " + CLI::detail::join(float_dtype_names(), ", ") + "; F32 when not given")
      ->type_name("T");
  verb.add_flag("--dry-run", flags.dry_run, "Compute and print the errors and the plan; write nothing");
  add_execute_flags(verb, flags.execute, flags.quiet);
  add_json(verb, flags.json);
}

// An adapter that is computed and not yet written.
struct Computed {
  const ResultFlags& flags;
  LowRankResult result;
  std::string title;  // of the text
  Json head;          // what the JSON begins with
};

// Writes the plan, unless it is a dry run.
std::optional<ExecuteReport> write(const Computed& computed, const Executor& execute) {
  const ResultFlags& flags = computed.flags;
  if (flags.dry_run) return std::nullopt;
  return execute(computed.result.plan, flags.out, flags.execute);
}

Json to_json(const Computed& computed, const std::optional<ExecuteReport>& done) {
  Json json = to_json(computed.result, computed.head);
  if (done) {
    json["out"] = computed.flags.out;
    json["bytes_out"] = done->bytes_out;
    json["seconds"] = done->seconds;
  } else {
    json["plan"] = plan_json(computed.result.plan);
  }
  return json;
}

// Writes and prints.
int finish(const Computed& computed) {
  const ResultFlags& flags = computed.flags;
  const auto done = write(computed, [&](const Plan& plan, const std::string& out, ExecuteOptions options) {
    return execute_shown(plan, out, std::move(options), flags.quiet);
  });
  if (flags.json) {
    print_json(to_json(computed, done));
    return 0;
  }
  print(flags, computed.result, computed.title, done);
  if (!done) {
    std::ostringstream text;
    text << computed.result.plan;
    write_out(text.str());
  }
  return 0;
}

}  // namespace

void add_combine(CLI::App& app, CombineCommand& command) {
  auto& verb = *app.add_subcommand("combine", "Make one adapter of several, each with a weight");
  verb.add_option("adapters", command.adapters, "Adapters, each with its weight: DIR@0.7")
      ->required()
      ->type_name("DIR@WEIGHT");
  const std::vector<std::string> types(combine_types().begin(), combine_types().end());
  verb.add_option("--type", command.type, "How: " + CLI::detail::join(types, ", "))
      ->capture_default_str()
      ->type_name("TYPE")
      ->check(quiet(CLI::IsMember(types)));
  verb.add_option("--svd-rank", command.svd_rank,
                  "Types that end in svd: the new rank; the largest one of the adapters when not given")
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  verb.add_option("--density", command.density, "ties, dare, magnitude_prune: the part of the elements that is kept")
      ->type_name("D");
  verb.add_option("--majority-sign-method", command.majority_sign_method,
                  "ties: the sign of the sum, or the sign that most have")
      ->capture_default_str()
      ->type_name("total|frequency")
      ->check(quiet(CLI::IsMember({"total", "frequency"})));
  verb.add_option("--seed", command.seed, "dare: which elements are dropped")->capture_default_str()->type_name("N");
  add_result_flags(verb, command.result, "--to");
  add_input_flags(verb, command.input, false);
  verb.footer(kCombineExamples);
}

void add_resize(CLI::App& app, ResizeCommand& command) {
  auto& verb = *app.add_subcommand("resize", "Write an adapter at a lower rank, and say what that costs");
  verb.add_option("adapter", command.adapter, "The adapter")->required()->type_name("ADAPTER");
  verb.add_option("--rank", command.rank, "The new rank")
      ->required()
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  add_result_flags(verb, command.result, "--to");
  add_input_flags(verb, command.input, false);
  verb.footer(kResizeExamples);
}

void add_extract(CLI::App& app, ExtractCommand& command) {
  auto& verb = *app.add_subcommand("extract", "Recover an adapter from a model and its fine-tuned form");
  verb.add_option("--base", command.base, "The base model's folder")->required()->type_name("DIR");
  verb.add_option("--finetuned", command.finetuned, "The fine-tuned or merged model's folder")
      ->required()
      ->type_name("DIR");
  verb.add_option("--rank", command.rank, "The largest rank to keep")
      ->required()
      ->type_name("R")
      ->check(quiet(CLI::Range(1, 1'000'000)));
  verb.add_option("--modules-to-save", command.modules_to_save,
                  "Carry these modules whole where they changed: the end of a name, such as norm")
      ->type_name("MODULE");
  verb.add_flag("--ignore-unused", command.ignore_unused, "Go on where something changed that LoRA cannot hold");
  verb.add_option("--family", command.family, "The model_type, where the base does not say it")->type_name("TYPE");
  verb.add_option("--families", command.families_file, "Further families, in the form of data/families.json")
      ->type_name("FILE");
  verb.add_flag("--follow-symlinks", command.open.follow_symlinks,
                "Accept shards that are links out of the model's folder");
  add_result_flags(verb, command.result, "--to,--layout");
  verb.footer(kExtractExamples);
}

namespace {

Computed compute(const CombineCommand& command) {
  require_out(command.result.out, command.result.dry_run);
  std::vector<WeightedAdapter> adapters;
  Json list = Json::array();
  for (const auto& text : command.adapters) {
    adapters.push_back(parse_weighted_adapter(text));
    list.push_back({{"path", adapters.back().path}, {"weight", number(adapters.back().weight)}});
  }
  CombineOptions options;
  options.input = command.input.options();
  options.type = parse_combine_type(command.type).value();
  options.to = parse_optional_layout("--to", command.result.to);
  options.dtype = parse_optional_dtype("--dtype", command.result.dtype);
  options.svd_rank = command.svd_rank;
  options.density = command.density;
  options.majority_by_count = command.majority_sign_method == "frequency";
  options.seed = command.seed;
  options.threads = command.result.execute.threads;
  return {command.result,
          plan_combine(adapters, options),
          fmt::format("{} of {} adapters", command.type, adapters.size()),
          {{"type", command.type}, {"adapters", list}}};
}

Computed compute(const ResizeCommand& command) {
  require_out(command.result.out, command.result.dry_run);
  ResizeOptions options;
  options.input = command.input.options();
  options.rank = command.rank;
  options.to = parse_optional_layout("--to", command.result.to);
  options.dtype = parse_optional_dtype("--dtype", command.result.dtype);
  options.threads = command.result.execute.threads;
  return {command.result,
          plan_resize(command.adapter, options),
          fmt::format("resized to rank {}", command.rank),
          {{"adapter", command.adapter}, {"rank", command.rank}}};
}

Computed compute(const ExtractCommand& command) {
  require_out(command.result.out, command.result.dry_run);
  ExtractOptions options;
  options.base = command.base;
  options.finetuned = command.finetuned;
  options.family = command.family;
  options.families_file = command.families_file;
  options.rank = command.rank;
  options.to = parse_optional_layout("--to", command.result.to);
  options.dtype = parse_optional_dtype("--dtype", command.result.dtype);
  options.modules_to_save = command.modules_to_save;
  options.ignore_unused = command.ignore_unused;
  options.open = command.open;
  options.threads = command.result.execute.threads;
  return {command.result,
          plan_extract(options),
          fmt::format("extracted, rank {} at most", command.rank),
          {{"base", command.base}, {"finetuned", command.finetuned}, {"rank", command.rank}}};
}

template <class Verb>
Json result_of(const Verb& command, const Executor& execute) {
  const Computed computed = compute(command);
  return to_json(computed, write(computed, execute));
}

}  // namespace

int run(const CombineCommand& command) { return finish(compute(command)); }
int run(const ResizeCommand& command) { return finish(compute(command)); }
int run(const ExtractCommand& command) { return finish(compute(command)); }

Json result(const CombineCommand& command, const Executor& execute) { return result_of(command, execute); }
Json result(const ResizeCommand& command, const Executor& execute) { return result_of(command, execute); }
Json result(const ExtractCommand& command, const Executor& execute) { return result_of(command, execute); }

}  // namespace peft::cli
