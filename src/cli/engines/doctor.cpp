#include "cli/engines/doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "cli/endpoint/endpoint.h"
#include "cli/engines/engine_pages.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "cli/runtime/runtime.h"
#include "engines/engine.h"
#include "peft/error.h"
#include "peft/verbs.h"

namespace peft::cli {
namespace {

constexpr const char* kDoctorExamples = R"(Examples:
  peft doctor my-lora                                    a row for every engine
  peft doctor my-lora --for vllm --base Qwen3-30B-A3B    every kind of module, and the command that mends it
  peft doctor my-lora --for peft@0.20 --json
  peft doctor --endpoint http://127.0.0.1:8000/v1 --model BASE --lora my-lora --base Qwen3-30B-A3B --adapter my-lora
                                                         asks a running server, and compares with our own numbers

Exit codes: 0 all right, or no --for; 1 not right, or not known; 2 an input is bad.)";

Json to_json(const DoctorReport::Engine& engine) {
  Json parts = Json::array();
  for (const auto& part : engine.parts) {
    parts.push_back({{"part", info(part.part).text},
                     {"modules", part.modules},
                     {"rank", part.rank},
                     {"example", part.example},
                     {"verdict", name(part.verdict)},
                     {"why", part.why},
                     {"message", part.message},
                     {"shown_by", part.shown_by},
                     {"measured", part.measured}});
  }
  return {{"engine", engine.name},
          {"version", engine.version},
          {"mode", engine.mode},
          {"title", engine.title},
          {"answer", name(engine.outcome)},
          {"right", engine.right()},
          {"measured", engine.measured},
          {"parts", parts},
          {"run", engine.run},
          {"mend", engine.mend}};
}

Json to_json(const DoctorReport& report) {
  Json engines = Json::array();
  for (const auto& engine : report.engines) engines.push_back(to_json(engine));
  return {{"path", report.path},
          {"layout", report.has_experts ? info(report.layout).name : "dense"},
          {"model_type", report.model_type},
          {"all_right", report.all_right},
          {"engines", engines}};
}

// The part that decides, in a few words.
std::string reason(const DoctorReport::Engine& engine) {
  for (const auto& part : engine.parts) {
    if (part.verdict != engines::Verdict::binds) return fmt::format("{}: {}", info(part.part).text, part.why);
  }
  return {};
}

void print_rows(const DoctorReport& report) {
  Table table({{"engine"}, {"answer"}, {"how sure"}, {"why"}});
  for (const auto& engine : report.engines)
    table.add({engine.title, std::string(name(engine.outcome)), engine.measured ? "measured" : "by its source",
               reason(engine)});
  write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  write_out("\nMore: peft doctor ADAPTER --for ENGINE\n");
}

void print_engine(const DoctorReport::Engine& engine) {
  write_out(bold(engine.title, STDOUT_FILENO) + ": " + std::string(name(engine.outcome)) +
            (engine.measured ? " (measured)\n" : " (by its source, not run)\n"));
  Table table({{"modules", Align::right}, {"rank", Align::right}, {"what"}, {"verdict"}, {"why"}});
  for (const auto& part : engine.parts) {
    std::string why = part.why;
    if (!part.message.empty()) why += (why.empty() ? "" : ". It says: ") + part.message;
    table.add({std::to_string(part.modules), part.rank == 0 ? "-" : std::to_string(part.rank),
               std::string(info(part.part).text), std::string(name(part.verdict)), printable(why, 1000)});
  }
  write_out(table.render(2, static_cast<std::size_t>(terminal_width())));
  if (!engine.run.empty()) write_out("\nTo run it:\n");
  for (const auto& line : engine.run) write_out("  " + printable(line, 4000) + "\n");
  if (!engine.mend.empty()) write_out("\nTo mend it:\n  " + printable(engine.mend, 8000) + "\n");
}

}  // namespace

void add_doctor(CLI::App& app, DoctorCommand& command) {
  auto& verb = *app.add_subcommand("doctor", "Say whether an adapter will work where it shall run, and what mends it");
  verb.add_option("adapter,--adapter", command.path,
                  "The adapter: a folder, or org/name in the local Hugging Face cache")
      ->required()
      ->type_name("ADAPTER");
  verb.add_option("--for", command.engine, "The engine, with a version if need be: vllm, peft@0.20 (peft engines)")
      ->type_name("ENGINE");
  verb.add_option("--endpoint", command.endpoint, "A running OpenAI-compatible server: is the adapter right there?")
      ->type_name("URL")
      ->group("A running server");
  verb.add_option("--model", command.model, "What the server calls the base model")
      ->type_name("NAME")
      ->group("A running server");
  verb.add_option("--lora", command.lora, "What the server calls the adapter; of llama-server: its file")
      ->type_name("NAME")
      ->group("A running server");
  verb.add_option("--ids", command.ids, "The prompt, as token ids: 1,2,3; some of the vocabulary when not given")
      ->type_name("IDS")
      ->group("A running server");
  verb.add_option("--timeout", command.seconds, "Seconds to wait for an answer")
      ->type_name("SECONDS")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group("A running server");
  add_json(verb, command.json);
  add_input_flags(verb, command.input, false);
  verb.footer(kDoctorExamples);
}

void add_engines(CLI::App& app, EnginesCommand& command) {
  auto& verb = *app.add_subcommand("engines", "List what is known of the programs that read adapters");
  verb.add_option("engine", command.engine, "One engine")->type_name("ENGINE");
  add_json(verb, command.json);
}

namespace {

EndpointReport ask_server_of(const DoctorCommand& command) {
  if (command.model.empty() || command.lora.empty() || command.input.base.empty() || !command.engine.empty()) {
    at({}).fail(ErrorCode::USAGE, {.problem = "a server is asked for a base and an adapter by their names there",
                                   .expected = "--endpoint with --model, --lora and --base, and without --for"});
  }
  EndpointOptions options;
  options.server = {command.endpoint, command.model, command.lora, command.seconds};
  options.base = command.input.base, options.adapter = command.path;
  if (!command.ids.empty()) {
    const Rows rows = parse_ids(command.ids);
    if (rows.size() != 1 || rows.front().size() < 2)
      at({}).fail(ErrorCode::USAGE, {.problem = "--ids is one prompt of two tokens or more", .got = command.ids});
    options.ids = rows.front();
  }
  return ask_server(options);
}

Json to_json(const DoctorCommand& command, const EndpointReport& report) {
  const Comparison& comparison = report.comparison;
  return {{"endpoint", command.endpoint},
          {"model", command.model},
          {"lora", command.lora},
          {"verdict", name(comparison.verdict)},
          {"what", report.what},
          {"factor", number(comparison.factor)},
          {"moved", number(comparison.moved)},
          {"base_off", number(comparison.base_off)},
          {"adapter_off", number(comparison.adapter_off)},
          {"tokens", report.tokens}};
}

int run_endpoint(const DoctorCommand& command) {
  const EndpointReport report = ask_server_of(command);
  const Comparison& comparison = report.comparison;
  if (command.json) {
    print_json(to_json(command, report));
  } else {
    write_out(fmt::format("{}: {}\n", name(comparison.verdict), report.what));
    if (comparison.moved > 0) {
      write_out(
          fmt::format("log-probabilities of {} tokens, root mean square: the adapter moves them by {:.3g} here; the "
                      "server is {:.3g} away without it, {:.3g} with it\n",
                      report.tokens, comparison.moved, comparison.base_off, comparison.adapter_off));
    }
  }
  return comparison.verdict == ServerVerdict::right ? 0 : 1;
}

}  // namespace

Json result(const DoctorCommand& command) {
  if (!command.endpoint.empty()) return to_json(command, ask_server_of(command));
  return to_json(doctor(command.path, {command.input.options(), command.engine}));
}

int run(const DoctorCommand& command) {
  if (!command.endpoint.empty()) return run_endpoint(command);
  const DoctorReport report = doctor(command.path, {command.input.options(), command.engine});
  if (command.json) {
    print_json(to_json(report));
  } else if (command.engine.empty()) {
    print_rows(report);
  } else {
    for (const auto& engine : report.engines) print_engine(engine);
  }
  return command.engine.empty() || report.all_right ? 0 : 1;
}

int run(const EnginesCommand& command) {
  std::vector<const engines::Engine*> list;
  if (command.engine.empty()) {
    for (const auto& engine : engines::engines()) list.push_back(&engine);
  } else {
    list.push_back(engines::choose(command.engine).engine);
  }
  if (command.json) {
    Json rows = Json::array();
    for (const auto* engine : list) rows.push_back(engine_json(*engine));
    print_json({{"engines", rows}});
  } else if (command.engine.empty()) {
    print_engine_table();
  } else {
    print_engine_profile(*list.front());
  }
  return 0;
}

}  // namespace peft::cli
