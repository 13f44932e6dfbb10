// Whether two adapters are the same function, whatever their layouts.
//
//   example_03_verify A B
#include <peft/peft.h>

#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: example_03_verify A B\n";
    return 2;
  }
  const peft::VerifyReport report = peft::verify(argv[1], argv[2], {});
  std::cout << (report.same ? "the same function" : "different") << ": " << report.compared << " matrices, "
            << report.identical << " identical, largest relative difference " << report.largest_relative << "\n";
  for (const auto& difference : report.differences)
    std::cout << "  " << difference.name << ": " << difference.what << "\n";
  return report.same ? 0 : 1;
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
