#include "cli/docs.h"

#include "cli/output.h"
#include "cli/table.h"
#include "cli/tables.h"
#include "peft/error.h"
#include "peft/layout.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

constexpr std::string_view kGenerated =
    "<!-- Made by `peft docs`; change the table in the code, then `make docs`. -->\n\n";

std::string errors_page() {
  Table table({{"code"}, {"exit", Align::right}, {"meaning"}});
  for (const auto& row : error_codes()) {
    table.add({std::string(row.name), std::to_string(row.exit_code), std::string(row.meaning)});
  }
  return "# Errors\n\n" + std::string(kGenerated) +
         "An error is one line on stderr; with `--json` the same fields are an object on stdout.\n\n"
         "    error[CODE] file: \"tensor\": problem: expected X, got Y. hint: one action\n"
         "    {\"error\": {\"code\", \"file\", \"tensor\", \"problem\", \"expected\", \"got\", \"hint\"}}\n\n"
         "Fields that do not apply are empty. Text from a file is escaped (control and bidirectional characters "
         "become\n"
         "`\\u{..}`) and cut at 200 characters, with its full length named.\n\n"
         "| exit | meaning |\n|---:|---|\n"
         "| 0 | done; for `verify`: the same function |\n"
         "| 1 | an input is bad; for `verify`: the adapters differ |\n"
         "| 2 | the command line makes no sense, or a fact is missing; for `verify` also: an input is bad |\n"
         "| 3 | reading, writing or space |\n"
         "| 4 | a bug in peft.cpp: please report it |\n"
         "| 5 | stopped by a signal; nothing is left behind but what --resume goes on with |\n\n" +
         table.markdown();
}

std::string layouts_page() {
  std::string page =
      "# Layouts\n\n" + std::string(kGenerated) +
      "A layout is a form in which programs write LoRA factors to a file. `peft convert --to NAME` writes one,\n"
      "`peft inspect` names the one a file has. E experts, r rank per expert, e expert, k index in the rank;\n"
      "`in` and `out` are the widths of one expert's matrix, d1 and d2 the last two dimensions of the parameter as\n"
      "it is stored.\n";
  for (const auto& row : layouts()) {
    Table table({{"what"}, {"how"}});
    describe_layout(row, table);
    page += "\n## " + std::string(row.name) + "\n\n" + table.markdown();
  }
  return page;
}

std::string families_page() {
  Table moe({{"model_type"},
             {"v4 experts"},
             {"v5 experts"},
             {"orientation"},
             {"gate and up"},
             {"per-expert names"},
             {"config keys"},
             {"PEFT's config conversion"},
             {"router"},
             {"note"}});
  std::string dense;
  for (const auto& row : families()) {
    if (row.dense) {
      dense += (dense.empty() ? "`" : ", `") + row.model_type + "`";
      continue;
    }
    moe.add({row.model_type, row.v4_experts, row.v5_experts, row.orientation, row.gate_up, row.per_expert_names,
             row.config_keys, row.peft_config, row.router, row.note});
  }
  return "# Model families\n\n" + std::string(kGenerated) +
         "What the experts of each `model_type` are called and how they are stored, in transformers 4 and 5. The data "
         "is\n"
         "`data/families.json`; `--families FILE` adds rows of the same form.\n\n" +
         moe.markdown() + "\nFamilies without experts (their dense modules convert as they are): " + dense + ".\n";
}

}  // namespace

int run(const DocsCommand& command) {
  if (command.page == "errors") write_out(errors_page());
  if (command.page == "layouts") write_out(layouts_page());
  if (command.page == "families") write_out(families_page());
  return 0;
}

}  // namespace peft::cli
