// The verbs of the command line on files: keyword arguments in, what --json prints out.
#include "cli/engines/doctor.h"
#include "cli/output/json.h"
#include "cli/verbs/convert.h"
#include "cli/verbs/inspect.h"
#include "cli/verbs/low_rank.h"
#include "cli/verbs/merge.h"
#include "cli/verbs/targets.h"
#include "cli/verbs/verify.h"
#include "peft/verbs.h"
#include "run.h"
#include "values.h"

namespace peft::python {

namespace {

constexpr std::int64_t kMaxRank = 1'000'000;

void take_threads(Arguments& arguments, int& threads) { arguments.take("threads", threads, 1, 1024); }

void take_execute(Arguments& arguments, ExecuteOptions& execute) {
  arguments.take("overwrite", execute.overwrite);
  take_threads(arguments, execute.threads);
  arguments.take("sync", execute.sync);
  arguments.take("readback", execute.readback);
}

void take_result(Arguments& arguments, cli::ResultFlags& flags) {
  arguments.take("out", flags.out);
  arguments.take("to", flags.to);
  arguments.take("dtype", flags.dtype);
  arguments.take("dry_run", flags.dry_run);
  take_execute(arguments, flags.execute);
}

void take(Arguments& arguments, cli::InspectCommand& command) {
  arguments.take("path", command.path);
  arguments.take(command.input);
}

void take(Arguments& arguments, cli::TargetsCommand& command) {
  arguments.take("path", command.path);
  arguments.take("base", command.base);
  arguments.take("generation", command.generation);
  arguments.take("as_of", command.as_of);
  arguments.take("families", command.families_file);
  cli::require_choice("--generation", command.generation, {"", "v4", "v5"});
}

void take(Arguments& arguments, cli::ConvertCommand& command) {
  command.paths.resize(1);
  arguments.take("adapter", command.paths[0]);
  arguments.take("to", command.to);
  arguments.take("for_", command.engine);
  arguments.take("gguf_base", command.gguf_base);
  arguments.take("out", command.out);
  arguments.take("dtype", command.dtype);
  arguments.take("block_diagonal", command.block_diagonal);
  arguments.take("dry_run", command.dry_run);
  arguments.take("config_only", command.config_only);
  take_execute(arguments, command.execute);
  arguments.take(command.input);
}

void take(Arguments& arguments, cli::DoctorCommand& command) {
  arguments.take("adapter", command.path);
  arguments.take("for_", command.engine);
  arguments.take(command.input);
}

void take(Arguments& arguments, cli::VerifyCommand& command) {
  arguments.take("adapters", command.adapters);
  arguments.take("merged", command.merged);
  arguments.take("tolerance", command.tolerance);
  arguments.take("base_is_residual", command.base_is_residual);
  take_threads(arguments, command.threads);
  arguments.take(command.input);
  cli::require_choice("--tolerance", command.tolerance, {"exact", "rounded"});
}

void take(Arguments& arguments, cli::MergeCommand& command) {
  arguments.take("adapters", command.adapters);
  arguments.take("out", command.out);
  arguments.take("mode", command.mode);
  arguments.take("base_dtype", command.base_dtype);
  arguments.take("out_dtype", command.out_dtype);
  arguments.take("keep_quantized", command.keep_quantized);
  arguments.take("base_is_residual", command.base_is_residual);
  arguments.take("allow_repeat", command.allow_repeat);
  arguments.take("max_shard_size", command.max_shard_size);
  arguments.take("report", command.report);
  arguments.take("dry_run", command.dry_run);
  arguments.take("resume", command.resume);
  arguments.take("trust_journal", command.execute.trust_journal);
  arguments.take("part", command.part);
  arguments.take("finish", command.execute.finish);
  take_execute(arguments, command.execute);
  arguments.take(command.input);
  command.json = true;  // norms are measured as for --json
  cli::require_choice("--mode", command.mode, {"best", "peft", "peft-safe", "fast"});
}

void take(Arguments& arguments, cli::CombineCommand& command) {
  arguments.take("adapters", command.adapters);
  arguments.take("type", command.type);
  arguments.take("svd_rank", command.svd_rank, 1, kMaxRank);
  arguments.take("density", command.density);
  arguments.take("majority_sign_method", command.majority_sign_method);
  arguments.take("seed", command.seed);
  take_result(arguments, command.result);
  arguments.take(command.input);
  cli::require_choice("--type", command.type, {combine_types().begin(), combine_types().end()});
  cli::require_choice("--majority-sign-method", command.majority_sign_method, {"total", "frequency"});
}

void take(Arguments& arguments, cli::ResizeCommand& command) {
  arguments.take("adapter", command.adapter);
  arguments.take("rank", command.rank, 1, kMaxRank);
  take_result(arguments, command.result);
  arguments.take(command.input);
}

void take(Arguments& arguments, cli::ExtractCommand& command) {
  arguments.take("base", command.base);
  arguments.take("finetuned", command.finetuned);
  arguments.take("rank", command.rank, 1, kMaxRank);
  arguments.take("modules_to_save", command.modules_to_save);
  arguments.take("ignore_unused", command.ignore_unused);
  arguments.take("family", command.family);
  arguments.take("families", command.families_file);
  arguments.take("follow_symlinks", command.open.follow_symlinks);
  take_result(arguments, command.result);
}

cli::Json result_of(const cli::InspectCommand& command, RunState&) {
  return cli::to_json(inspect(command.path, command.input.options()));
}
cli::Json result_of(const cli::TargetsCommand& command, RunState&) { return cli::result(command); }
cli::Json result_of(const cli::VerifyCommand& command, RunState&) { return cli::result(command); }
cli::Json result_of(const cli::DoctorCommand& command, RunState&) { return cli::result(command); }
template <class Command>
cli::Json result_of(const Command& command, RunState& state) {
  return cli::result(command, [&state](const Plan& plan, const std::string& out, ExecuteOptions options) {
    return state.execute(plan, out, std::move(options));
  });
}

template <class Command>
void add_verb(nb::module_& module, const char* name) {
  const auto call = [](nb::dict values, nb::object progress) {
    Command command;
    Arguments arguments(std::move(values));
    take(arguments, command);
    arguments.finish();
    return json_to_python(run_for<cli::Json>(
        progress, true, [command = std::move(command)](RunState& state) { return result_of(command, state); }));
  };
  module.def(name, call, nb::arg("values"), nb::arg("progress").none());
}

}  // namespace

void add_files(nb::module_& module) {
  add_verb<cli::InspectCommand>(module, "inspect");
  add_verb<cli::TargetsCommand>(module, "targets");
  add_verb<cli::ConvertCommand>(module, "convert");
  add_verb<cli::VerifyCommand>(module, "verify");
  add_verb<cli::DoctorCommand>(module, "doctor");
  add_verb<cli::MergeCommand>(module, "merge");
  add_verb<cli::CombineCommand>(module, "combine");
  add_verb<cli::ResizeCommand>(module, "resize");
  add_verb<cli::ExtractCommand>(module, "extract");
  add_run(module);
  module.def("layout_names", [] {
    nb::list names;
    for (const std::string& name : cli::layout_names()) names.append(to_python(name));
    return names;
  });
}

}  // namespace peft::python
