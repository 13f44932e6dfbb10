#include "cli/convert.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "cli/convert_job.h"
#include "cli/json_output.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/units.h"

namespace peft::cli {
namespace {

namespace fs = std::filesystem;

// The folder's own name, for outputs that lie side by side: "lora" of "runs/lora/".
std::string base_name(const std::string& path) {
  fs::path folder = fs::path(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  if (folder.filename() == "." || folder.filename() == "..") folder = fs::weakly_canonical(path);
  return folder.filename().string();
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
    folders.push_back(command.out.empty() ? std::string() : (fs::path(command.out) / name).string());
  }
  return folders;
}

Json to_json(const ConvertCommand& command, const Conversion& conversion) {
  if (conversion.error) {
    return {{"adapter", conversion.path}, {"to", command.to}, {"error", error_json(*conversion.error)}};
  }
  Json json = {{"adapter", conversion.path},
               {"adapter_names", sorted(conversion.adapters)},
               {"from", conversion.from},
               {"to", command.to},
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

void print_one(const ConvertCommand& command, const Conversion& conversion) {
  for (const auto& note : conversion.notes) write_err("note: " + printable(note, 1000) + "\n");
  if (!conversion.done) {
    std::ostringstream text;
    text << conversion.plan;
    write_out(text.str());
    return;
  }
  write_warnings(conversion.plan.warnings);
  const ExecuteReport& report = *conversion.done;
  std::string checks = command.execute.sync ? "synced" : "not synced";
  checks += command.execute.readback ? ", read back" : ", not read back";
  const std::string what =
      conversion.from == kDense ? "dense LoRA, the same in every PEFT layout" : conversion.from + " -> " + command.to;
  write_out(fmt::format("{}: {} tensors -> {}, {} in {} ({}), {}\n", what, conversion.tensors_in,
                        conversion.tensors_out, human_bytes(report.bytes_out), human_seconds(report.seconds),
                        name(conversion.plan.exactness), checks));
  write_out(printable(conversion.out, 4096) + "\n");
}

void print_table(const ConvertCommand& command, const std::vector<Conversion>& conversions) {
  for (const auto& conversion : conversions) {
    for (const auto& note : conversion.notes) {
      write_err("note: " + printable(conversion.path, 200) + ": " + printable(note, 1000) + "\n");
    }
    for (const auto& warning : conversion.plan.warnings) write_warnings({conversion.path + ": " + warning});
    if (conversion.error) {
      write_err(red("error", STDERR_FILENO) + std::string(conversion.error->what()).substr(5) + "\n");
    }
  }
  Table table(
      {{"adapter"}, {"from"}, {"to"}, {"tensors", Align::right}, {"bytes", Align::right}, {"exactness"}, {"result"}});
  for (const auto& conversion : conversions) {
    if (conversion.error) {
      table.add({conversion.path, conversion.from, command.to, "", "", "",
                 "failed: " + std::string(info(conversion.error->code()).name)});
      continue;
    }
    table.add({conversion.path, conversion.from, command.to, std::to_string(conversion.tensors_out),
               human_bytes(conversion.plan.bytes_out), std::string(name(conversion.plan.exactness)),
               conversion.done ? conversion.out : "planned"});
  }
  write_out(table.render());
}

// The folder that outputs of several adapters lie in. One that was made here and stays empty is taken away again.
class SharedFolder {
 public:
  explicit SharedFolder(const std::string& path) : path_(path) {
    std::error_code error;
    made_ = !path.empty() && fs::create_directory(path, error);
    if (!path.empty() && !fs::is_directory(path, error)) {
      throw Error(ErrorCode::IO_WRITE,
                  {.file = path, .problem = "cannot be made or is no folder", .got = error.message()});
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
      conversion = plan_conversion(command, command.paths[i], folders[i]);
      if (!command.dry_run) execute_conversion(command, conversion);
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
    print_table(command, conversions);
  }
  return exit_code;
}

int convert_config_only(const ConvertCommand& command) {
  if (command.paths.size() != 1) {
    throw Error(ErrorCode::USAGE,
                {.problem = "--config-only takes one config", .got = std::to_string(command.paths.size())});
  }
  ConvertOptions options;
  options.input = command.input.options();
  options.to = parse_layout_flag("--to", command.to);
  const ConfigConversion conversion = convert_config(command.paths[0], options);
  if (!command.out.empty() && !command.dry_run) {
    Plan plan;
    plan.texts.emplace_back("adapter_config.json", conversion.after);
    plan.bytes_out = conversion.after.size();
    execute(plan, command.out, command.execute);
  }
  if (command.json) {
    print_json({{"config", pythonic::parse_json(conversion.after, "adapter_config.json")},
                {"out", command.out},
                {"warnings", conversion.warnings}});
    return 0;
  }
  const std::string changes = diff(conversion.before, conversion.after);
  std::istringstream lines(changes);
  for (std::string line; std::getline(lines, line);) write_out(printable(line, 4000) + "\n");
  write_warnings(conversion.warnings);
  return 0;
}

}  // namespace

int run(const ConvertCommand& command) {
  if (command.config_only) return convert_config_only(command);
  if (command.out.empty() && !command.dry_run) {
    throw Error(ErrorCode::USAGE, {.problem = "--out is needed", .hint = "or --dry-run, to see what would be written"});
  }
  parse_layout_flag("--to", command.to);  // a wrong value is an error of the command line, not of each path
  const auto folders = output_folders(command);
  if (folders.size() > 1) return convert_many(command, folders);

  Conversion conversion = plan_conversion(command, command.paths[0], folders[0]);
  if (!command.dry_run) execute_conversion(command, conversion);
  if (command.json) {
    print_json(to_json(command, conversion));
  } else {
    print_one(command, conversion);
  }
  return 0;
}

}  // namespace peft::cli
