// A program that uses an installed peft: names the layout of an adapter.
#include <peft/peft.h>

#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  const peft::Input input = peft::load(argv[1], {});
  std::cout << peft::info(input.reading.layout).name << ", " << input.reading.factors.factors.size() << " factors\n";
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
