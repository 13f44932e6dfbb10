// TensorFile::parse on any bytes: never a crash, and always the answer of the naive reader.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "fuzz/check_header.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

constexpr std::size_t kLength = 8;

const std::string_view kSeeds[] = {
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}})",
    R"({"z":{"dtype":"I64","shape":[0,4],"data_offsets":[0,0]},"y":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"__metadata__":null} )",
    R"({"\u0061\ud83d\ude00":{"dtype":"F7","shape":[9223372036854775807,0],"data_offsets":[0,0],"x":[[1.5,-3,{"k":null}]]}})",
};

const std::string_view kTokens[] = {R"("dtype":)",
                                    R"("shape":)",
                                    R"("data_offsets":)",
                                    "\"__metadata__\":",
                                    "\"F32\"",
                                    "\"F6_E2M3\"",
                                    "\"U8\"",
                                    "[0,0]",
                                    "[]",
                                    "{}",
                                    "null",
                                    "-0",
                                    "1e3",
                                    "2.0",
                                    "18446744073709551615",
                                    "18446744073709551616",
                                    "9223372036854775808",
                                    "\\ud800",
                                    "\\u0000",
                                    "\xff",
                                    "\xef\xbb\xbf",
                                    ",",
                                    ":",
                                    "  ",
                                    "\n"};

void write_length(std::uint8_t* data, std::uint64_t length) {
  for (std::size_t i = 0; i < kLength; ++i) data[i] = static_cast<std::uint8_t>(length >> (8 * i));
}

std::uint64_t read_length(const std::uint8_t* data) {
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLength; ++i) length |= std::uint64_t{data[i]} << (8 * i);
  return length;
}

std::size_t insert(std::string_view token, std::size_t at, std::uint8_t* data, std::size_t size, std::size_t max_size) {
  if (size + token.size() > max_size) return size;
  std::memmove(data + at + token.size(), data + at, size - at);
  std::memcpy(data + at, token.data(), token.size());
  return size + token.size();
}

}  // namespace

// Blind changes end at the length. So the header is changed, and the length and the data follow it.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int seed) {
  std::mt19937 random(seed);
  if (random() % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::size_t header = size > kLength ? std::min<std::uint64_t>(read_length(data), size - kLength) : 0;
  std::size_t rest = size > kLength ? size - kLength - header : 0;
  if (header == 0 || random() % 64 == 0) {
    const std::string_view fresh = kSeeds[random() % std::size(kSeeds)];
    rest = 16;
    if (kLength + fresh.size() + rest > max_size) return size;
    std::memcpy(data + kLength, fresh.data(), fresh.size());
    header = fresh.size();
  }
  const std::size_t room = max_size - kLength - std::min(rest, max_size - kLength);
  std::uint8_t* json = data + kLength;
  if (random() % 3 == 0) {
    header = insert(kTokens[random() % std::size(kTokens)], random() % (header + 1), json, header, room);
  } else {
    header = LLVMFuzzerMutate(json, header, room);
  }
  if (random() % 4 == 0) rest = random() % 24;
  if (kLength + header + rest > max_size) rest = max_size - kLength - header;
  std::memset(json + header, 0, rest);
  write_length(data, header);
  return kLength + header + rest;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string fault = peft::naive::check_header({reinterpret_cast<const char*>(data), size});
  if (fault.empty()) return 0;
  std::fprintf(stderr, "%s\n", fault.c_str());
  std::abort();
}
