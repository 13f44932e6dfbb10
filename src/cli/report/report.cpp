#include "cli/report/report.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "cli/output/output.h"
#include "cli/report/data.h"
#include "cli/report/html.h"
#include "peft/error.h"

namespace peft::cli {

extern const std::string_view kReportTemplate;  // report.html, which CMake embeds

namespace {

constexpr std::string_view kAdapterWeights = "adapter_model.safetensors";
constexpr std::size_t kRows = 4000;  // of the table; a page with more is no help

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

std::string code(const std::string& text) { return "<code>" + html_escape(text) + "</code>"; }

std::string options_text(const MergeOptions& options) {
  std::string text;
  const auto add = [&](const std::string& word) { text += (text.empty() ? "" : ", ") + word; };
  if (options.base_dtype) add("base cast to " + std::string(info(*options.base_dtype).name));
  if (options.out_q8_0) add("result rounded to Q8_0");
  if (options.out_dtype) add("result rounded to " + std::string(info(*options.out_dtype).name));
  if (options.max_shard_size) add("shards of at most " + human_bytes(*options.max_shard_size));
  if (options.keep_quantized) add("untouched quantised tensors kept");
  if (options.base_is_residual) add("the base is a residual");
  if (options.allow_repeat) add("repeated merges allowed");
  return text.empty() ? "none beyond the defaults" : text;
}

namespace fs = std::filesystem;

using Slots = HtmlTemplate::Slots;

// The files of the base among the plan's sources.
std::vector<const TensorFile*> base_files(const MergePlan& merge) {
  std::vector<const TensorFile*> files;
  for (const auto& source : merge.plan.sources) {
    if (!source->path().ends_with(kAdapterWeights)) files.push_back(source.get());
  }
  return files;
}

void add_result(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts, const ReportData& data,
                Slots& slots) {
  slots["name"] = html_escape(leaf(facts.out));
  slots["base_name"] = html_escape(leaf(facts.options.base));
  slots["adapter_count"] = plural(facts.options.adapters.size(), "LoRA adapter");
  slots["finished"] = html_escape(facts.finished);
  slots["version"] = kVersion;
  slots["changed"] = grouped(merge.changed);
  slots["copied"] = grouped(merge.copied);
  slots["matrices"] = grouped(static_cast<std::uint64_t>(data.all.matrices));
  slots["change_of_all"] = percent_text(data.all.relative());
  slots["largest_change"] = percent_text(data.most);
  slots["bytes_in"] = human_bytes(done.bytes_in);
  slots["bytes_out"] = human_bytes(done.bytes_out);
  slots["seconds"] = human_seconds(done.seconds);
  slots["verified"] = facts.read_back ? "verified" : "not verified";
  slots["how_verified"] = facts.read_back ? "every byte was read back and compared" : "written with --no-readback";
}

// Maps of experts and of everything else, with one scale of colours.
void add_maps(const HtmlTemplate& html, const ReportData& data, Slots& slots) {
  slots["experts"] = slots["dense"] = "";
  if (data.all.matrices == 0) return;
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
  constexpr std::string_view kNothing = "not changed";
  const std::string legend = scale.legend(percent_text, kNothing);
  if (!data.experts.empty()) {
    ExpertCells cells{{}, data.most_experts, "relative change by layer and expert"};
    for (const auto& [place, change] : data.experts) cells.values[place] = change.relative();
    slots["experts"] =
        html.fill("experts", {{"map", expert_map(cells, scale, percent_text, kNothing)}, {"legend", legend}});
  }
  if (!data.dense.empty()) {
    LayerCells cells;
    for (const auto& [layer, modules] : data.dense) {
      for (const auto& [name, change] : modules) cells[layer][name] = change.relative();
    }
    slots["dense"] = html.fill("dense", {{"map", layer_map(cells, data.dense_names, scale, percent_text)},
                                         {"legend", data.experts.empty() ? legend : ""}});
  }
}

std::string tensor_row(const HtmlTemplate& html, const ReportTensor& tensor, double most) {
  const double relative = tensor.change.relative();
  const double base = std::sqrt(tensor.change.base), delta = std::sqrt(tensor.change.delta);
  const bool measured = tensor.change.matrices > 0;
  const auto value = [](double number) { return fmt::format("{:.9g}", number); };
  return html.fill("tensor", {{"name", html_escape(tensor.name)},
                              {"rules", html_escape(tensor.rules)},
                              {"matrices_value", value(static_cast<double>(tensor.change.matrices))},
                              {"matrices", grouped(static_cast<std::uint64_t>(tensor.change.matrices))},
                              {"ranks", html_escape(tensor.ranks)},
                              {"scales", html_escape(tensor.scales)},
                              {"base_value", value(base)},
                              {"base", measured ? fmt::format("{:.4g}", base) : ""},
                              {"delta_value", value(delta)},
                              {"delta", measured ? fmt::format("{:.4g}", delta) : ""},
                              {"change_value", value(relative)},
                              {"change", measured ? percent_text(relative) : "replaced"},
                              {"width", fmt::format("{:.0f}", most > 0 ? 80 * relative / most : 0)}});
}

void add_tensors(const HtmlTemplate& html, const ReportData& data, Slots& slots) {
  std::string& rows = slots["tensors"];
  for (std::size_t i = 0; i < std::min(kRows, data.tensors.size()); ++i)
    rows += tensor_row(html, data.tensors[i], data.most);
  std::string& more = slots["more_tensors"];
  if (data.tensors.size() > kRows)
    more = html.fill("more_tensors", {{"shown", grouped(kRows)}, {"all", grouped(data.tensors.size())}});
}

void add_adapters(const HtmlTemplate& html, const MergePlan& merge, const ReportFacts& facts, Slots& slots) {
  std::string& rows = slots["adapters"];
  for (std::size_t i = 0; i < facts.options.adapters.size(); ++i) {
    const WeightedAdapter& adapter = facts.options.adapters[i];
    std::error_code none;
    const auto size = std::filesystem::file_size(
        std::filesystem::path(resolve_path(adapter.path)) / facts.options.input.adapter_name / kAdapterWeights, none);
    rows += html.fill("adapter", {{"path", code(adapter.path)},
                                  {"weight", short_number(adapter.weight)},
                                  {"layout", html_escape(i < merge.layouts.size() ? merge.layouts[i] : "")},
                                  {"size", none ? "" : human_bytes(size)},
                                  {"digest", code(i < merge.digests.size() ? merge.digests[i] : "")}});
  }
}

// Each file of the base with a digest of its header: names, dtypes, shapes and places of all tensors.
void add_base(const HtmlTemplate& html, const MergePlan& merge, const ReportFacts& facts, Slots& slots) {
  const auto files = base_files(merge);
  std::uint64_t bytes = 0;
  std::string& rows = slots["base_files"];
  for (const TensorFile* file : files) {
    bytes += file->file_size();
    std::string header(file->data_offset(), '\0');
    std::ifstream(file->path(), std::ios::binary).read(header.data(), static_cast<std::streamsize>(header.size()));
    const XXH128_hash_t digest = XXH3_128bits(header.data(), header.size());
    rows += html.fill("base_file", {{"name", code(leaf(file->path()))},
                                    {"size", human_bytes(file->file_size())},
                                    {"tensors", grouped(file->tensors().size())},
                                    {"digest", fmt::format("{:016x}{:016x}", digest.high64, digest.low64)}});
  }
  slots["base"] = code(facts.options.base);
  slots["base_size"] = fmt::format("{}, {}", plural(files.size(), "weights file"), human_bytes(bytes));
}

void add_provenance(const HtmlTemplate& html, const MergePlan& merge, const ExecuteReport& done,
                    const ReportFacts& facts, Slots& slots) {
  add_adapters(html, merge, facts, slots);
  add_base(html, merge, facts, slots);
  slots["out"] = code(facts.out);
  slots["out_size"] =
      fmt::format("{}, {}", plural(merge.plan.files.size(), "weights file"), human_bytes(done.bytes_out));
  slots["mode"] = html_escape(mode_text(facts.options.mode));
  slots["exactness"] = html_escape(std::string(name(merge.plan.exactness)));
  std::string& error = slots["measured_error"];
  if (done.error.sampled > 0) {
    error = html.fill("measured_error", {{"different", grouped(done.error.different)},
                                         {"sampled", grouped(done.error.sampled)},
                                         {"places", fmt::format("{:.3g}", done.error.max_ulps)}});
  }
  slots["options"] = html_escape(options_text(facts.options));
  slots["durability"] = std::string(facts.synced ? "synced to disk" : "not synced") +
                        (facts.read_back ? ", read back and compared" : ", not read back");
  slots["command"] = code(facts.command);
  std::string again = "peft verify --merged " + facts.out + " --base " + facts.options.base;
  for (const auto& adapter : facts.options.adapters)
    again += " " + adapter.path + (adapter.weight == 1 ? "" : "@" + short_number(adapter.weight));
  slots["check_command"] = code(again);
}

// Sentences that whoever gets the model should know.
std::vector<std::string> notes_of(const MergePlan& merge) {
  std::vector<std::string> notes = merge.plan.warnings;
  if (merge.untied)
    notes.push_back(
        "The output embedding was tied to the input embedding and became a tensor of its own, because only one of them "
        "changed.");
  if (merge.dequantized > 0)
    notes.push_back(plural(merge.dequantized, "quantised tensor") + " of the base became bf16.");
  if (merge.zero_deltas.empty()) return notes;
  constexpr std::size_t kShown = 8;
  const std::size_t count = merge.zero_deltas.size();
  std::string zero = grouped(count) + (count == 1 ? " matrix" : " matrices") +
                     " did not change, because the adapter's factors are zero there: ";
  for (std::size_t i = 0; i < std::min(count, kShown); ++i) zero += (i == 0 ? "" : ", ") + merge.zero_deltas[i];
  notes.push_back(zero + (count > kShown ? ", ..." : ""));
  return notes;
}

void add_notes(const HtmlTemplate& html, const MergePlan& merge, Slots& slots) {
  std::string rows;
  for (const std::string& note : notes_of(merge)) rows += html.fill("note", {{"text", html_escape(note)}});
  slots["notes"] = rows.empty() ? "" : html.fill("notes", {{"notes", rows}});
}

}  // namespace

std::string merge_report(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts) {
  static const HtmlTemplate html(kReportTemplate);
  const ReportData data = report_data(merge, done);
  Slots slots{{"style", html.text("style")}, {"script", html.text("script")}};
  add_result(merge, done, facts, data, slots);
  add_notes(html, merge, slots);
  add_maps(html, data, slots);
  add_tensors(html, data, slots);
  add_provenance(html, merge, done, facts, slots);
  return html.fill("page", slots);
}

void check_report(const std::string& path) {
  const fs::path file(path);
  std::error_code none;
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (fs::is_directory(folder, none) && !fs::is_directory(file, none)) return;
  at(path).fail(ErrorCode::IO_WRITE,
                {.problem = "the report cannot be written there", .expected = "a file in a folder that exists"});
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
