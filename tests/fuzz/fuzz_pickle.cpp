// PickleFile::parse on any bytes: never a crash, and what is accepted lies in the file. Blind changes end at the
// archive's checksums, so a mutation changes the pickle of a valid archive and puts the checksum right.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fuzz/check_pickle.h"
#include "support/pickle_images.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // The input as the pickle of an archive that is right, and as the archive itself.
  const std::string archive = peft::pickle::archive_image(
      {{"a/data.pkl", std::string(bytes)}, {"a/byteorder", "little"}, {"a/data/0", std::string(64, '\1')}});
  for (const std::string_view image : {std::string_view(archive), bytes}) {
    const std::string fault = peft::pickle::check_pickle(image);
    if (fault.empty()) continue;
    std::fprintf(stderr, "%s\n", fault.c_str());
    std::abort();
  }
  return 0;
}

// Begins with the pickle of one tensor of twelve floats.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int seed) {
  const std::string fresh = peft::pickle::state_dict_of("x", 12, {3, 4});
  if ((size < 8 || seed % 64 == 0) && fresh.size() <= max_size) {
    std::memcpy(data, fresh.data(), fresh.size());
    size = fresh.size();
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
