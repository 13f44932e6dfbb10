// The keys of adapter_config.json: which PEFT version writes them, what they say, and which verb does what with them.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/python_json.h"
#include "peft/config.h"

namespace peft::config {

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

// Which values of a key mean something. Of the others no verb takes notice.
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

std::span<const PeftKey> peft_keys();    // what LoraConfig writes, sorted by key
std::span<const PeftKey> config_keys();  // and after those, what only others or older versions write
const PeftKey* find_peft_key(std::string_view key);

// Keys that no PEFT version of today writes, but that we know: other programs' marks, older fields, our own.
bool is_known_extra(std::string_view key);

bool tells(const PeftKey& row, const Json& value);

// The keys of a file whose values are telling, with the values as JSON text.
struct TellingKey {
  const PeftKey* row = nullptr;
  std::string value;
};
std::vector<TellingKey> telling_keys(const AdapterConfig& config);

// "merge, combine, resize": what users call the verbs, for sentences.
std::string names(Verbs verbs);

}  // namespace peft::config
