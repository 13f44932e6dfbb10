#include "cli/report/report.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "cli/output/output.h"
#include "cli/report/data.h"
#include "cli/report/html.h"
#include "cli/report_style.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr std::string_view kAdapterWeights = "adapter_model.safetensors";
constexpr std::size_t kRows = 4000;  // of the table; a page with more is no help

std::string leaf(const std::string& path) {
  std::filesystem::path p = std::filesystem::path(path).lexically_normal();
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().empty() ? path : p.filename().string();
}

std::string mode_text(MergeMode mode) {
  switch (mode) {
    case MergeMode::best:
      return "best: each value is summed in fp32 (fp64 for fp32 models) and rounded once";
    case MergeMode::peft:
      return "peft: the roundings of PEFT's merge_and_unload()";
    case MergeMode::peft_safe:
      return "peft-safe: the roundings of PEFT's merge_and_unload(safe_merge=True)";
    case MergeMode::fast:
      return "fast: the quickest arithmetic of the machine, its error measured";
  }
  return {};
}

std::string plural(std::size_t count, const std::string& noun) {
  return fmt::format("{} {}{}", grouped(count), noun, count == 1 ? "" : "s");
}

std::string tile(const std::string& value, const std::string& label) {
  return fmt::format("<div class=tile><b>{}</b><span>{}</span></div>", value, label);
}

std::string fact(const std::string& name, const std::string& html) {
  return fmt::format("<tr><th scope=row>{}</th><td>{}</td></tr>", name, html);
}
std::string code(const std::string& text) { return "<code>" + html_escape(text) + "</code>"; }

std::string head(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts, const ReportData& data) {
  const std::size_t adapters = facts.options.adapters.size();
  std::string text = fmt::format(
      "<p class=soft style=\"margin:0\">Merge report</p><h1>{}</h1><p class=soft>{} with {} merged into it. Written {} "
      "by peft.cpp {}.</p>",
      html_escape(leaf(facts.out)), html_escape(leaf(facts.options.base)), plural(adapters, "LoRA adapter"),
      html_escape(facts.finished), kVersion);
  text += "<div class=tiles>";
  text += tile(grouped(merge.changed),
               fmt::format("tensors changed, {} matrices", grouped(static_cast<std::uint64_t>(data.all.matrices))));
  text += tile(grouped(merge.copied), "tensors are those of the base");
  text += tile(percent_text(data.all.relative()), "change of all touched weights together");
  text += tile(percent_text(data.most), "change of the tensor that changed most");
  text += tile(human_bytes(done.bytes_out), "written in " + human_seconds(done.seconds));
  text += tile(facts.read_back ? "verified" : "not verified",
               facts.read_back ? "every byte was read back and compared" : "written with --no-readback");
  return text +
         "</div><p>The change of a weight matrix W is &#8214;&#916;W&#8214; / &#8214;W&#8214; (Frobenius): 1&nbsp;% "
         "means that what was added is as "
         "large as a hundredth of what was there. A fine-tuned model is usually between a tenth of a percent and a few "
         "percent; far more may mean a wrong "
         "scale, zero an adapter that does nothing there.</p>";
}

std::string maps(const ReportData& data) {
  if (data.all.matrices == 0) return {};
  double least = data.most, most = 0;
  const auto see = [&](const Change& change) {
    const double relative = change.relative();
    if (relative <= 0) return;
    least = std::min(least, relative);
    most = std::max(most, relative);
  };
  for (const auto& [place, change] : data.experts) see(change);
  for (const auto& [layer, modules] : data.dense) {
    for (const auto& [name, change] : modules) see(change);
  }
  const ColourScale scale(least, most);
  std::string text;
  if (!data.experts.empty()) {
    text +=
        "<h2>Experts</h2><p class=soft>Relative change of each expert: its gate, up and down together. Rows are "
        "layers, columns are experts.</p>";
    text += expert_map(data, scale) + scale.legend();
  }
  if (!data.dense.empty()) {
    text += "<h2>Other modules</h2><p class=soft>The same for attention and everything else that is not an expert.</p>";
    text += dense_map(data, scale) + (data.experts.empty() ? scale.legend() : "");
  }
  return text;
}

std::string row(const ReportTensor& tensor, double most) {
  const double relative = tensor.change.relative();
  const auto number = [](double value, const std::string& shown) {
    return fmt::format("<td class=r data-v=\"{:.9g}\">{}</td>", value, shown);
  };
  const bool measured = tensor.change.matrices > 0;
  std::string text =
      "<tr><td class=mono>" + html_escape(tensor.name) + "</td><td>" + html_escape(tensor.rules) + "</td>";
  text +=
      number(static_cast<double>(tensor.change.matrices), grouped(static_cast<std::uint64_t>(tensor.change.matrices)));
  text += "<td class=r>" + html_escape(tensor.ranks) + "</td><td class=r>" + html_escape(tensor.scales) + "</td>";
  text += number(std::sqrt(tensor.change.base), measured ? fmt::format("{:.4g}", std::sqrt(tensor.change.base)) : "");
  text += number(std::sqrt(tensor.change.delta), measured ? fmt::format("{:.4g}", std::sqrt(tensor.change.delta)) : "");
  text += fmt::format(
      "<td class=r data-v=\"{:.9g}\">{}<span class=track><span class=bar "
      "style=\"width:{:.0f}px\"></span></span></td></tr>\n",
      relative, measured ? percent_text(relative) : "replaced", most > 0 ? 80 * relative / most : 0);
  return text;
}

std::string tensors(const ReportData& data) {
  std::string text =
      "<h2>Tensors that changed</h2><p class=soft>In the model's own names. A click on a heading sorts. Several "
      "adapters on one matrix: their "
      "deltas' squares are added.</p><input id=filter type=search placeholder=\"Filter by name\" aria-label=\"Filter "
      "by name\">"
      "<div class=scroll><table id=table><thead><tr><th data-sort>tensor</th><th data-sort>rule</th><th class=r "
      "data-sort>matrices</th>"
      "<th class=r data-sort>rank</th><th class=r data-sort>scale</th><th class=r data-sort>&#8214;W&#8214;</th>"
      "<th class=r data-sort>&#8214;&#916;W&#8214;</th><th class=r data-sort>change</th></tr></thead><tbody>\n";
  std::size_t shown = 0;
  for (const ReportTensor& tensor : data.tensors) {
    if (++shown > kRows) break;
    text += row(tensor, data.most);
  }
  text += "</tbody></table></div>";
  if (data.tensors.size() > kRows)
    text += fmt::format("<p class=soft>The first {} of {}; peft merge --json has them all.</p>", grouped(kRows),
                        grouped(data.tensors.size()));
  return text;
}

std::string adapters(const MergePlan& merge, const ReportFacts& facts) {
  std::string text =
      "<div class=scroll><table><thead><tr><th>adapter</th><th class=r>weight</th><th>layout</th><th "
      "class=r>size</th><th>digest of its factors</th></tr></thead><tbody>";
  for (std::size_t i = 0; i < facts.options.adapters.size(); ++i) {
    const WeightedAdapter& adapter = facts.options.adapters[i];
    std::error_code none;
    const auto size = std::filesystem::file_size(
        std::filesystem::path(resolve_path(adapter.path)) / facts.options.input.adapter_name / kAdapterWeights, none);
    text += "<tr><td>" + code(adapter.path) + "</td><td class=r>" + short_number(adapter.weight) + "</td><td>" +
            html_escape(i < merge.layouts.size() ? merge.layouts[i] : "") + "</td><td class=r>" +
            (none ? "" : human_bytes(size)) + "</td><td>" + code(i < merge.digests.size() ? merge.digests[i] : "") +
            "</td></tr>";
  }
  return text + "</tbody></table></div>";
}

std::string options_text(const MergeOptions& options) {
  std::string text;
  const auto add = [&](const std::string& word) { text += (text.empty() ? "" : ", ") + word; };
  if (options.base_dtype) add("base cast to " + std::string(info(*options.base_dtype).name));
  if (options.out_dtype) add("result rounded to " + std::string(info(*options.out_dtype).name));
  if (options.max_shard_size) add("shards of at most " + human_bytes(*options.max_shard_size));
  if (options.keep_quantized) add("untouched quantised tensors kept");
  if (options.base_is_residual) add("the base is a residual");
  if (options.allow_repeat) add("repeated merges allowed");
  return text.empty() ? "none beyond the defaults" : text;
}

// Names, sizes and a digest of each file's header: names, dtypes, shapes and places of all tensors.
std::string base_files(const MergePlan& merge) {
  std::string text =
      "<details><summary>files of the base</summary><table><thead><tr><th>file</th><th class=r>size</th><th "
      "class=r>tensors</th>"
      "<th>digest of the header (XXH3, 128 bits)</th></tr></thead><tbody>";
  for (const auto& source : merge.plan.sources) {
    if (source->path().ends_with(kAdapterWeights)) continue;
    std::string header(source->data_offset(), '\0');
    std::ifstream(source->path(), std::ios::binary).read(header.data(), static_cast<std::streamsize>(header.size()));
    const XXH128_hash_t digest = XXH3_128bits(header.data(), header.size());
    text += "<tr><td>" + code(leaf(source->path())) + "</td><td class=r>" + human_bytes(source->file_size()) +
            "</td><td class=r>" + grouped(source->tensors().size()) +
            fmt::format("</td><td><code>{:016x}{:016x}</code></td></tr>", digest.high64, digest.low64);
  }
  return text + "</tbody></table></details>";
}

std::string provenance(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts) {
  std::size_t files = 0;
  std::uint64_t bytes = 0;
  for (const auto& source : merge.plan.sources) {
    if (!source->path().ends_with(kAdapterWeights)) ++files, bytes += source->file_size();
  }
  std::string text =
      "<h2>Where it comes from</h2>" + adapters(merge, facts) + "<table class=facts style=\"margin-top:16px\">";
  text += fact("Base model",
               code(facts.options.base) +
                   fmt::format(" <span class=soft>{}, {}</span>", plural(files, "weights file"), human_bytes(bytes)) +
                   base_files(merge));
  text += fact("Result", code(facts.out) + fmt::format(" <span class=soft>{}, {}</span>",
                                                       plural(merge.plan.files.size(), "weights file"),
                                                       human_bytes(done.bytes_out)));
  text += fact("Rounding", html_escape(mode_text(facts.options.mode)));
  text += fact("Exactness", html_escape(std::string(name(merge.plan.exactness))));
  if (done.error.sampled > 0) {
    text +=
        fact("Measured error",
             fmt::format("{} of {} sampled elements are not the exact sum rounded once; at most {:.3g} last places off",
                         grouped(done.error.different), grouped(done.error.sampled), done.error.max_ulps));
  }
  text += fact("Options", html_escape(options_text(facts.options)));
  text += fact("Durability", std::string(facts.synced ? "synced to disk" : "not synced") +
                                 (facts.read_back ? ", read back and compared" : ", not read back"));
  text += fact("Time", fmt::format("{} for {} read and {} written", human_seconds(done.seconds),
                                   human_bytes(done.bytes_in), human_bytes(done.bytes_out)));
  text += fact("Finished", html_escape(facts.finished));
  text += fact("Program", fmt::format("peft.cpp {}", kVersion));
  text += fact("Command", code(facts.command));
  std::string again = "peft verify --merged " + facts.out + " --base " + facts.options.base;
  for (const auto& adapter : facts.options.adapters)
    again += " " + adapter.path + (adapter.weight == 1 ? "" : "@" + short_number(adapter.weight));
  return text + fact("To check it", code(again)) + "</table>";
}

std::string notes(const MergePlan& merge) {
  std::vector<std::string> all = merge.plan.warnings;
  if (merge.untied)
    all.push_back(
        "The output embedding was tied to the input embedding and became a tensor of its own, because only one of them "
        "changed.");
  if (merge.dequantized > 0) all.push_back(plural(merge.dequantized, "quantised tensor") + " of the base became bf16.");
  if (!merge.zero_deltas.empty()) {
    const bool one = merge.zero_deltas.size() == 1;
    std::string zero = grouped(merge.zero_deltas.size()) + (one ? " matrix" : " matrices") +
                       " did not change, because the adapter's factors are zero there: ";
    for (std::size_t i = 0; i < std::min<std::size_t>(merge.zero_deltas.size(), 8); ++i)
      zero += (i == 0 ? "" : ", ") + merge.zero_deltas[i];
    all.push_back(zero + (merge.zero_deltas.size() > 8 ? ", ..." : ""));
  }
  if (all.empty()) return {};
  std::string text = "<h2>To be known</h2>";
  for (const std::string& note : all) text += "<div class=warn>" + html_escape(note) + "</div>";
  return text;
}

namespace fs = std::filesystem;

}  // namespace

std::string html_escape(std::string_view text) {
  constexpr std::array<std::pair<char, std::string_view>, 5> kEntities = {
      {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}, {'\'', "&#39;"}}};
  std::string escaped;
  for (const char c : printable(text, 4096)) {
    const auto entity = std::find_if(kEntities.begin(), kEntities.end(), [c](const auto& e) { return e.first == c; });
    if (entity == kEntities.end())
      escaped += c;
    else
      escaped += entity->second;
  }
  return escaped;
}

std::string merge_report(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts) {
  const ReportData data = report_data(merge, done);
  std::string page =
      "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width, "
      "initial-scale=1\">"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'\">";
  page += "<title>Merge report: " + html_escape(leaf(facts.out)) + "</title><style>" + kReportStyle +
          "</style></head><body><main>\n";
  page += head(merge, done, facts, data) + notes(merge) + maps(data) + tensors(data) + provenance(merge, done, facts);
  page += fmt::format(
      "<footer>Made by peft.cpp {}. This page holds everything it shows and loads "
      "nothing.</footer></main>\n<script>{}</script></body></html>\n",
      kVersion, kReportScript);
  return page;
}

void check_report(const std::string& path) {
  const fs::path file(path);
  std::error_code none;
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (fs::is_directory(folder, none) && !fs::is_directory(file, none)) return;
  throw Error(
      ErrorCode::IO_WRITE,
      {.file = path, .problem = "the report cannot be written there", .expected = "a file in a folder that exists"});
}

void write_report(const ReportFacts& facts, const MergePlan& merge, const ExecuteReport& done) {
  std::ofstream out(facts.file, std::ios::binary | std::ios::trunc);
  out << merge_report(merge, done, facts);
  out.close();
  if (!out) {
    at(facts.file)
        .fail(ErrorCode::IO_WRITE, {.problem = "writing the report failed; the merged model itself is complete"});
  }
}

}  // namespace peft::cli
