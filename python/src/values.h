// Values between Python and C++: texts and paths, JSON as dicts and lists, keyword arguments as the fields of a
// command.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "module.h"
#include "pythonic/python_json.h"

namespace peft::cli {
struct InputFlags;
}

namespace peft::python {

// A str, bytes or os.PathLike, as the bytes that the file system takes. Throws TypeError that names `what`.
std::string to_text(nb::handle value, const char* what);

// A str; bytes that are no UTF-8 are kept, as os.fsdecode keeps them.
nb::str to_python(std::string_view text);
nb::object json_to_python(const pythonic::Json& value);

// Keyword arguments: a dict in which None stands for "not given". Each is taken once; what is left is a TypeError.
class Arguments {
 public:
  explicit Arguments(nb::dict values) : values_(std::move(values)) {}

  void take(const char* name, std::string& value);
  void take(const char* name, std::vector<std::string>& value);  // one text, or several
  void take(const char* name, bool& value);
  void take(const char* name, std::int64_t& value, std::int64_t least, std::int64_t most);
  void take(const char* name, std::uint64_t& value);
  void take(const char* name, int& value, int least, int most);
  void take(const char* name, std::optional<double>& value);
  void take(cli::InputFlags& input);  // how adapters are read
  void finish() const;

 private:
  nb::object pop(const char* name);
  nb::dict values_;
};

}  // namespace peft::python
