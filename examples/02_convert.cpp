// Converts an adapter to the fused layout of transformers 5. The plan is a value: look at it, then carry it out.
//
//   example_02_convert ADAPTER OUT
#include <peft/peft.h>

#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: example_02_convert ADAPTER OUT\n";
    return 2;
  }
  peft::ConvertOptions options;
  options.to = peft::Layout::peft_fused;

  const peft::Input input = peft::load(argv[1], options.input);
  const peft::Plan plan = peft::plan_convert(input, options);  // every check is here; nothing is written yet
  std::cout << plan;

  const peft::ExecuteReport report = peft::execute(plan, argv[2]);  // appears complete, or not at all
  std::cout << "wrote " << report.bytes_out << " bytes\n";
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return peft::info(error.code()).exit_code;
}
