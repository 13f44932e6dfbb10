#include "cli/low_rank_output.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "cli/input_flags.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress_bar.h"
#include "cli/table.h"
#include "cli/units.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

// What a site is of its layer: "q_proj", "gate+up".
std::string part_of(const std::string& site) { return site.substr(site.rfind('.') + 1); }

struct Row {
  std::string part;
  std::int64_t count = 0, least_rank = 0, most_rank = 0;
  double worst = 0, sum = 0;
};

std::vector<Row> rows_of(const LowRankResult& result) {
  std::vector<Row> rows;
  for (const LowRankSite& site : result.sites) {
    const std::string part = part_of(site.site);
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
        {{"site", site.site}, {"rank", site.rank}, {"norm", number(site.norm)}, {"relative", number(site.relative)}});
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
  for (const auto& note : result.notes) write_err("note: " + printable(note, 1000) + "\n");
  write_warnings(result.plan.warnings);
  std::string line = fmt::format("{}: {} matrices", bold(title, STDOUT_FILENO), result.sites.size());
  if (!result.left_out.empty()) line += fmt::format(", {} came out as zero and are left out", result.left_out.size());
  if (done) {
    line += fmt::format(", {} in {} ({}), {}, {}", human_bytes(done->bytes_out), human_seconds(done->seconds),
                        name(result.plan.exactness), flags.execute.sync ? "synced" : "not synced",
                        flags.execute.readback ? "read back" : "not read back");
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

}  // namespace

std::optional<Layout> ResultFlags::layout() const {
  if (to.empty()) return std::nullopt;
  return parse_layout_flag("--to", to);
}

std::optional<Dtype> ResultFlags::element() const {
  if (dtype.empty()) return std::nullopt;
  return parse_dtype_flag("--dtype", dtype);
}

void ResultFlags::require_out() const {
  if (!out.empty() || dry_run) return;
  throw Error(ErrorCode::USAGE, {.problem = "--out is needed", .hint = "or --dry-run, to see what would be written"});
}

int finish(const ResultFlags& flags, LowRankResult result, const std::string& title, Json head) {
  std::optional<ExecuteReport> done;
  if (!flags.dry_run) {
    const InterruptGuard interrupt;
    ProgressBar bar(!flags.quiet && is_smart_terminal(STDERR_FILENO));
    ExecuteOptions options = flags.execute;
    options.cancel = interrupt.flag();
    options.progress = [&bar](std::uint64_t bytes, std::uint64_t total) { bar.update(bytes, total); };
    done = execute(result.plan, flags.out, options);
  }
  if (flags.json) {
    Json json = to_json(result, std::move(head));
    if (done) {
      json["out"] = flags.out;
      json["bytes_out"] = done->bytes_out;
      json["seconds"] = done->seconds;
    } else {
      json["plan"] = plan_json(result.plan);
    }
    print_json(json);
    return 0;
  }
  print(flags, result, title, done);
  if (!done) {
    std::ostringstream text;
    text << result.plan;
    write_out(text.str());
  }
  return 0;
}

}  // namespace peft::cli
