#include "cli/verbs/convert.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "cli/output/table.h"
#include "engines/engine.h"
#include "peft/error.h"
#include "peft/plan.h"
#include "peft/verbs.h"

namespace peft::cli {
namespace {

constexpr const char* kConvertExamples = R"(Examples:
  peft convert my-lora --to peft-fused --out my-lora-v5
  peft convert my-lora --to peft-fused --out my-lora-v5 --base Qwen3-30B-A3B
  peft convert my-lora --for vllm --out my-lora-vllm --base Qwen3-30B-A3B
  peft convert my-lora --to peft-fused --dry-run               what would be written
  peft convert my-lora --to gguf --out my-lora.gguf --base Mixtral-8x7B
  peft convert runs/a runs/b --to peft-per-expert --out v4     v4/a and v4/b, and a table
  peft convert my-lora --to peft-fused --config-only --base Qwen3-30B-A3B
  peft convert old --from peft-fused-0.18 --orientation in-out --to peft-fused --out new

What is written appears complete and checked, or not at all; the input is never modified.)";

namespace fs = std::filesystem;

// What a file without experts is: there is no layout to tell.
inline constexpr std::string_view kDense = "dense";

struct Conversion {
  std::string path = {}, out = {};
  std::string from = {};                   // layouts read, joined with ", "
  std::vector<std::string> adapters = {};  // names inside the folder
  std::size_t tensors_in = 0, tensors_out = 0;
  std::vector<std::string> notes = {};   // what is unusual about the input
  std::string to = {};                   // the layout written
  std::string engine = {};               // with --for: "vllm 0.33", and how it runs
  std::vector<std::string> run = {};     // with --for: lines to start it with
  std::vector<std::string> unused = {};  // tensors that --ignore-unused left out, and why
  Plan plan = {};
  std::optional<ExecuteReport> done = {};  // absent: only planned
  std::optional<Error> error = {};
};

// The folder's own name, for outputs that lie side by side: "lora" of "runs/lora/".
std::string base_name(const std::string& path) {
  fs::path folder = fs::path(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  if (folder.filename() == "." || folder.filename() == "..") folder = fs::weakly_canonical(path);
  return folder.filename().string();
}

// Whether an output is one file, and not a folder.
bool writes_a_file(const ConvertCommand& command) {
  const std::string_view gguf = info(Layout::gguf).name;
  if (command.engine.empty()) return command.to == gguf;
  const auto& forms = engines::choose(command.engine).engine->forms;
  return std::ranges::any_of(forms, [&](const engines::Form& form) { return form.layout == gguf; });
}

std::vector<std::string> output_folders(const ConvertCommand& command) {
  if (command.paths.size() == 1) return {command.out};
  std::vector<std::string> folders;
  std::set<std::string> seen;
  for (const auto& path : command.paths) {
    const std::string name = base_name(path);
    if (!seen.insert(name).second) {
      throw Error(ErrorCode::USAGE, {.problem = "two adapters have the same folder name, so their outputs would too",
                                     .got = name,
                                     .hint = "convert them one at a time"});
    }
    const std::string file = name + (writes_a_file(command) ? ".gguf" : "");
    folders.push_back(command.out.empty() ? std::string() : (fs::path(command.out) / file).string());
  }
  return folders;
}

// The adapters to convert, each with its subfolder in the output. --adapter-name takes one out, to the top.
std::vector<std::pair<std::string, std::string>> choose_adapters(const std::string& path, const std::string& wanted) {
  if (!wanted.empty()) return {{wanted, ""}};
  const auto names = adapter_names(resolve_path(path));
  if (names.size() < 2) return {{"", ""}};
  std::vector<std::pair<std::string, std::string>> chosen;
  for (const auto& name : names) {
    if (name == "default") {
      chosen.emplace_back("", "");
    } else {
      chosen.emplace_back(name, name);
    }
  }
  return chosen;
}

// The plan of one adapter, for a layout or for an engine.
Plan plan_one(const ConvertCommand& command, const Input& input, const ConvertOptions& options,
              const std::string& folder, Conversion& conversion) {
  if (command.engine.empty()) return plan_convert(input, options);
  const std::string out = folder.empty() ? conversion.out : (fs::path(conversion.out) / folder).string();
  EngineConversion made = plan_convert_for(input, options, command.engine, out);
  conversion.to = info(made.layout).name;
  conversion.engine = made.engine + " " + made.version + (made.mode.empty() ? "" : ", " + made.mode);
  if (!made.why.empty()) conversion.notes.push_back(conversion.to + ": " + made.why);
  for (std::string& line : made.run) conversion.run.push_back(std::move(line));
  return std::move(made.plan);
}

// Reads and plans all adapters of `path` that the command asks for. Nothing is written.
Conversion plan_conversion(const ConvertCommand& command, const std::string& path, const std::string& out) {
  Conversion conversion{.path = path, .out = out};
  ConvertOptions options;
  options.input = command.input.options();
  options.input.read.verb = Verb::convert;
  options.input.read.threads = command.execute.threads;
  if (command.engine.empty()) options.to = parse_layout_flag("--to", command.to);
  options.q8_0 = command.dtype == kQ8;
  if (!options.q8_0) options.dtype = parse_optional_dtype("--dtype", command.dtype);
  options.gguf_base = command.gguf_base;
  options.block_diagonal = command.block_diagonal;
  conversion.to = command.to;

  const auto adapters = choose_adapters(path, options.input.adapter_name);
  if (writes_a_file(command) && adapters.size() > 1) {
    throw Error(ErrorCode::USAGE, {.file = path,
                                   .problem = "the folder holds several adapters, and a GGUF file holds one",
                                   .hint = "choose one with --adapter-name"});
  }
  for (const auto& [name, folder] : adapters) {
    options.input.adapter_name = name;
    const Input input = load(path, options.input);
    const std::string layout(input.reading.has_experts ? info(input.reading.layout).name : kDense);
    if (conversion.from.find(layout) == std::string::npos)
      conversion.from += (conversion.from.empty() ? "" : ", ") + layout;
    conversion.adapters.push_back(name.empty() ? "default" : name);
    conversion.tensors_in += input.adapter.weights->tensors().size();
    for (const auto& anomaly : input.reading.anomalies) {
      conversion.notes.push_back(folder.empty() ? anomaly : folder + ": " + anomaly);
    }
    for (const auto& text : input.reading.unused)
      conversion.unused.push_back(folder.empty() ? text : folder + ": " + text);
    append(conversion.plan, plan_one(command, input, options, folder, conversion), folder);
  }
  for (const auto& file : conversion.plan.files) conversion.tensors_out += file.tensors.size();
  return conversion;
}

// With a progress line and Ctrl-C caught.
Executor shown(const ConvertCommand& command) {
  return [quiet = command.quiet](const Plan& plan, const std::string& out, ExecuteOptions options) {
    return execute_shown(plan, out, std::move(options), quiet);
  };
}

Conversion convert_one(const ConvertCommand& command, const std::string& path, const std::string& out,
                       const Executor& execute) {
  Conversion conversion = plan_conversion(command, path, out);
  if (!command.dry_run) conversion.done = execute(conversion.plan, conversion.out, command.execute);
  return conversion;
}

Json to_json(const ConvertCommand& command, const Conversion& conversion) {
  if (conversion.error) {
    return {{"adapter", conversion.path},
            {"to", command.to},
            {"for", command.engine},
            {"error", error_json(*conversion.error)}};
  }
  Json json = {{"adapter", conversion.path},
               {"adapter_names", sorted(conversion.adapters)},
               {"from", conversion.from},
               {"to", conversion.to},
               {"for", conversion.engine},
               {"run", conversion.run},
               {"tensors_in", conversion.tensors_in},
               {"tensors_out", conversion.tensors_out},
               {"exactness", name(conversion.plan.exactness)},
               {"unused", conversion.unused},
               {"notes", conversion.notes},
               {"warnings", conversion.plan.warnings}};
  if (conversion.done) {
    json["out"] = conversion.out;
    json["bytes_in"] = conversion.done->bytes_in;
    json["bytes_out"] = conversion.done->bytes_out;
    json["seconds"] = conversion.done->seconds;
  } else {
    json["plan"] = plan_json(conversion.plan);
  }
  return json;
}

// How the engine is started with what was written.
void print_run(const Conversion& conversion) {
  if (conversion.run.empty()) return;
  write_out("for " + conversion.engine + ":\n");
  for (const auto& line : conversion.run) write_out("  " + printable(line, 4096) + "\n");
}

void print_one(const ConvertCommand& command, const Conversion& conversion) {
  write_notes(conversion.notes);
  if (!conversion.done) {
    std::ostringstream text;
    text << conversion.plan;
    write_out(text.str());
    print_run(conversion);
    return;
  }
  write_warnings(conversion.plan.warnings);
  const ExecuteReport& report = *conversion.done;
  const std::string what = conversion.from == kDense ? "dense LoRA, the same in every PEFT layout"
                                                     : conversion.from + " -> " + conversion.to;
  write_out(fmt::format("{}: {} tensors -> {}, {} in {} ({}), {}\n", what, conversion.tensors_in,
                        conversion.tensors_out, human_bytes(report.bytes_out), human_seconds(report.seconds),
                        name(conversion.plan.exactness), checks_text(command.execute)));
  write_out(printable(conversion.out, 4096) + "\n");
  print_run(conversion);
}

void print_table(const std::vector<Conversion>& conversions) {
  for (const auto& conversion : conversions) {
    for (const auto& note : conversion.notes) {
      write_err("note: " + printable(conversion.path, 200) + ": " + printable(note, 1000) + "\n");
    }
    for (const auto& warning : conversion.plan.warnings) write_warnings({conversion.path + ": " + warning});
    if (conversion.error) write_error(*conversion.error);
  }
  Table table(
      {{"adapter"}, {"from"}, {"to"}, {"tensors", Align::right}, {"bytes", Align::right}, {"exactness"}, {"result"}});
  for (const auto& conversion : conversions) {
    if (conversion.error) {
      table.add({conversion.path, conversion.from, conversion.to, "", "", "",
                 "failed: " + std::string(info(conversion.error->code()).name)});
      continue;
    }
    table.add({conversion.path, conversion.from, conversion.to, std::to_string(conversion.tensors_out),
               human_bytes(conversion.plan.bytes_out), std::string(name(conversion.plan.exactness)),
               conversion.done ? conversion.out : "planned"});
  }
  write_out(table.render());
}

// The folder that outputs of several adapters lie in. Removed again if it was made here and stays empty.
class SharedFolder {
 public:
  explicit SharedFolder(const std::string& path) : path_(path) {
    std::error_code error;
    made_ = !path.empty() && fs::create_directory(path, error);
    if (!path.empty() && !fs::is_directory(path, error)) {
      at(path).fail(ErrorCode::IO_WRITE, {.problem = "cannot be made or is no folder", .got = error.message()});
    }
  }
  ~SharedFolder() {
    std::error_code not_empty;
    if (made_) fs::remove(path_, not_empty);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

 private:
  std::string path_;
  bool made_ = false;
};

int convert_many(const ConvertCommand& command, const std::vector<std::string>& folders) {
  const SharedFolder folder(command.dry_run ? std::string() : command.out);
  std::vector<Conversion> conversions;
  int exit_code = 0;
  for (std::size_t i = 0; i < folders.size(); ++i) {
    Conversion conversion{.path = command.paths[i], .out = folders[i]};
    try {
      conversion = convert_one(command, command.paths[i], folders[i], shown(command));
    } catch (const Error& error) {
      conversion.error = error;
      if (exit_code == 0) exit_code = info(error.code()).exit_code;
    }
    const bool stop = conversion.error && conversion.error->code() == ErrorCode::INTERRUPTED;
    conversion.plan.sources.clear();  // closes the input files
    conversions.push_back(std::move(conversion));
    if (stop) break;
  }
  if (command.json) {
    Json json = Json::array();
    for (const auto& conversion : conversions) json.push_back(to_json(command, conversion));
    print_json({{"conversions", json}});
  } else {
    print_table(conversions);
  }
  return exit_code;
}

void require_one_target(const ConvertCommand& command) {
  if (command.to.empty() != command.engine.empty()) return;
  throw Error(ErrorCode::USAGE, {.problem = "one of --to LAYOUT and --for ENGINE is needed",
                                 .got = command.to.empty() ? "neither" : "both",
                                 .hint = "peft layouts, peft engines"});
}

ConfigConversion convert_config_only(const ConvertCommand& command) {
  if (!command.engine.empty())
    throw Error(ErrorCode::USAGE, {.problem = "--config-only takes --to, not --for", .got = command.engine});
  if (command.paths.size() != 1) {
    throw Error(ErrorCode::USAGE,
                {.problem = "--config-only takes one config", .got = std::to_string(command.paths.size())});
  }
  ConvertOptions options;
  options.input = command.input.options();
  options.to = parse_layout_flag("--to", command.to);
  ConfigConversion conversion = convert_config(command.paths[0], options);
  if (!command.out.empty() && !command.dry_run) {
    Plan plan;
    plan.texts.emplace_back("adapter_config.json", conversion.after);
    plan.bytes_out = conversion.after.size();
    execute(plan, command.out, command.execute);
  }
  return conversion;
}

Json to_json(const ConvertCommand& command, const ConfigConversion& conversion) {
  return {{"config", pythonic::parse_json(conversion.after, "adapter_config.json")},
          {"out", command.out},
          {"warnings", conversion.warnings}};
}

int print_config_only(const ConvertCommand& command) {
  const ConfigConversion conversion = convert_config_only(command);
  if (command.json) {
    print_json(to_json(command, conversion));
    return 0;
  }
  const std::string changes = diff(conversion.before, conversion.after);
  std::istringstream lines(changes);
  for (std::string line; std::getline(lines, line);) write_out(printable(line, 4000) + "\n");
  write_warnings(conversion.warnings);
  return 0;
}

}  // namespace

void add_convert(CLI::App& app, ConvertCommand& command) {
  auto& verb = *app.add_subcommand("convert", "Write adapters in another layout");
  verb.add_option("adapters", command.paths, "Adapter folders (with --config-only: a config or a folder)")
      ->required()
      ->type_name("ADAPTER");
  verb.add_option("--to", command.to, "The layout to write: " + CLI::detail::join(layout_names(), ", "))
      ->type_name("LAYOUT");
  verb.add_option("--for", command.engine,
                  "The engine to write for, in place of --to, with a version if need be: vllm@0.33 (peft engines)")
      ->type_name("ENGINE");
  verb.add_option("--out", command.out, "The folder to write (gguf: the file); of several adapters, each gets DIR/NAME")
      ->type_name("DIR");
  verb.add_option("--dtype", command.dtype,
                  "Cast the factors: " + CLI::detail::join(float_dtype_names(), ", ") + "; gguf: also Q8_0")
      ->type_name("T");
  verb.add_flag("--block-diagonal", command.block_diagonal,
                "Keep gate and up apart (rank 2r) even where they share lora_A");
  verb.add_option("--gguf-base", command.gguf_base,
                  "gguf: the model's GGUF file; the adapter gets its tensor names, and its shapes are checked")
      ->type_name("FILE");
  verb.add_flag("--dry-run", command.dry_run, "Print the plan; write nothing");
  verb.add_flag("--config-only", command.config_only,
                "Convert adapter_config.json alone: print a diff, write it to --out");
  add_execute_flags(verb, command.execute, command.quiet);
  add_json(verb, command.json);
  add_input_flags(verb, command.input, false);
  verb.callback([&command] { require_one_target(command); });
  verb.footer(kConvertExamples);
}

Json result(const ConvertCommand& command, const Executor& execute) {
  require_one_target(command);
  if (command.config_only) return to_json(command, convert_config_only(command));
  require_out(command.out, command.dry_run);
  return to_json(command, convert_one(command, command.paths.at(0), command.out, execute));
}

int run(const ConvertCommand& command) {
  if (command.config_only) return print_config_only(command);
  require_out(command.out, command.dry_run);
  if (command.engine.empty())
    parse_layout_flag("--to", command.to);
  else
    engines::choose(command.engine);  // a wrong value is an error of the command line, not of each path
  const auto folders = output_folders(command);
  if (folders.size() > 1) return convert_many(command, folders);

  const Conversion conversion = convert_one(command, command.paths[0], folders[0], shown(command));
  if (command.json) {
    print_json(to_json(command, conversion));
  } else {
    print_one(command, conversion);
  }
  return 0;
}

}  // namespace peft::cli
