// Digests: of written bytes, and of all that decides the bytes of an output.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "peft/plan.h"

namespace peft::execution {

// XXH3: fast, and enough against accidents. Nothing here defends against someone who wants a collision.
class Hash {
 public:
  Hash() : state_(XXH3_createState()) {
    if (!state_) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }
  void add(const void* data, std::size_t bytes) { XXH3_128bits_update(state_.get(), data, bytes); }
  XXH128_hash_t digest128() const { return XXH3_128bits_digest(state_.get()); }
  std::uint64_t digest() const { return digest128().low64; }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

// What decides the bytes of an output, in one number: a run resumes only files of a run with the same number.
// Covers the version of this program, everything in the plan, and of every source its size, its header, samples of its
// data and, if wanted, the time of its last change. Not the number of threads, nor where the sources lie.
std::string fingerprint(const Plan& plan, bool with_times);

}  // namespace peft::execution
