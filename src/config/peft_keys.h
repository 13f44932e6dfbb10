// The keys of adapter_config.json: which PEFT version writes them, what they say, and which verb does what with them.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/config.h"
#include "pythonic/python_json.h"

namespace peft::config {

using pythonic::Json;

class Verbs {
 public:
  constexpr Verbs() = default;
  constexpr Verbs(std::initializer_list<Verb> verbs) {
    for (const Verb verb : verbs) bits_ |= bit(verb);
  }
  constexpr bool contains(Verb verb) const { return (bits_ & bit(verb)) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr Verbs operator|(Verbs other) const { return Verbs(bits_ | other.bits_); }
  constexpr Verbs operator&(Verbs other) const { return Verbs(bits_ & other.bits_); }

 private:
  constexpr explicit Verbs(unsigned bits) : bits_(bits) {}
  static constexpr unsigned bit(Verb verb) { return 1U << static_cast<unsigned>(verb); }
  unsigned bits_ = 0;
};

// Which values of a key mean something. No verb takes notice of other values.
enum class Tells : std::uint8_t {
  unless_empty,  // what Python takes for true: not null, false, 0, "", [] or {}
  unless_null,   // also [] and {}: PEFT makes an object of defaults of {}, or asks `is not None`
};

struct PeftKey {
  std::string_view key;
  AdapterConfig::Version since;   // the first tried version that writes it
  AdapterConfig::Version before;  // the last tried version that does not know it
  std::string_view value;         // default of the newest version, as JSON; "": no PEFT version of today writes it
  Verbs used, refused;            // in all other verbs it changes nothing, and is kept as it is
  std::string_view what;          // what it says
  std::string_view why = {};      // why it is refused
  std::string_view hint = {};
  Tells tells = Tells::unless_empty;
  bool on_parameters = true;  // false: PEFT knows it on modules only, so experts that are parameters cannot have it
};

constexpr AdapterConfig::Version kNewestPeft{0, 21, 2};

std::span<const PeftKey> peft_keys();    // the keys that LoraConfig writes, sorted
std::span<const PeftKey> config_keys();  // those, and then the keys that only other programs or older versions write
const PeftKey* find_peft_key(std::string_view key);    // null for a key that LoraConfig does not write
const PeftKey* find_config_key(std::string_view key);  // null for an unknown key

// Known keys that no PEFT version of today writes: marks of other programs, older fields, and our own.
bool is_known_extra(std::string_view key);

// Whether the value says something (see Tells).
bool tells(const PeftKey& row, const Json& value);

// "merge, combine, resize": what users call the verbs, for sentences.
std::string names(Verbs verbs);

}  // namespace peft::config
