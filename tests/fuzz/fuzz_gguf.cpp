// GgufFile::parse on any bytes: never a crash, and what is accepted obeys the format and can be written again.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "fuzz/check_gguf.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

using namespace peft::gguf;

// A small file with a value of each kind and tensors of several types.
std::string fresh(std::uint32_t choice) {
  const Value one = u32_value(choice), list[] = {text_value("a"), text_value("")};
  const Value numbers = array_value(ValueType::u32, std::vector{one, one});
  KeyValues values = {{"general.architecture", text_value("llama")},
                      {"adapter.lora.alpha", f32_value(16)},
                      {"texts", array_value(ValueType::text, list)},
                      {"nested", array_value(ValueType::array, std::vector{numbers, numbers})}};
  if (choice % 2 != 0) values.emplace_back("general.alignment", u32_value(8u << (choice / 2 % 4)));
  const std::vector<NewGgufTensor> tensors = {{"blk.0.attn_q.weight.lora_a", GgmlType::f32, {2, 3}},
                                              {"q", GgmlType::q8_0, {2, 32}},
                                              {"empty", GgmlType::bf16, {0, 4}},
                                              {"scalar", GgmlType::i64, {}}};
  const peft::FileLayout layout = layout_gguf(tensors, values);
  return layout.head + std::string(layout.data_bytes, '\0');
}

}  // namespace

// Blind changes of nothing end at the magic number. So a mutation begins with a file that is valid, or changes one.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int seed) {
  std::mt19937 random(seed);
  if (size < 24 || random() % 64 == 0) {
    const std::string bytes = fresh(static_cast<std::uint32_t>(random()));
    if (bytes.size() <= max_size) {
      std::memcpy(data, bytes.data(), bytes.size());
      size = bytes.size();
    }
  }
  const std::size_t changed = LLVMFuzzerMutate(data, size, max_size);
  if (changed >= 4 && random() % 16 != 0) std::memcpy(data, "GGUF", 4);
  return changed;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string fault = check_gguf({reinterpret_cast<const char*>(data), size});
  if (fault.empty()) return 0;
  std::fprintf(stderr, "%s\n", fault.c_str());
  std::abort();
}
