// What an adapter is: its layout, the reasons, and every factor with rank and scale.
//
//   example_01_inspect ADAPTER
#include <peft/peft.h>

#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: example_01_inspect ADAPTER\n";
    return 2;
  }
  const peft::Input input = peft::load(argv[1], {});  // opens, describes the model, decodes: no tensor is copied
  const peft::Reading& reading = input.reading;

  std::cout << "layout: " << peft::info(reading.layout).name << "\n";
  for (const auto& reason : reading.evidence) std::cout << "  because " << reason << "\n";

  for (const peft::Factor& factor : reading.factors.factors) {
    std::cout << peft::describe(factor.site) << "  [" << factor.out << ", " << factor.in << "]  rank " << factor.rank
              << "  scale " << factor.scale << "\n";
  }
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return peft::info(error.code()).exit_code;
}
