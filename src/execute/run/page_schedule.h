// When source pages are mapped and released: before the first unit that needs them, and after the last one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "execute/run/unit.h"

namespace peft::execution {

class PageSchedule {
 public:
  explicit PageSchedule(const FileWork& work);

  // Does nothing for units beyond the last. Safe from several threads for different units.
  void prefetch(std::size_t unit) const;  // maps what no earlier unit needed
  void release(std::size_t unit) const;   // releases what no later unit needs

 private:
  struct Window {
    std::uint32_t source;
    std::uint64_t begin, end;  // bytes of the source's data section
  };
  // Windows of unit u: [starts[u], starts[u + 1]).
  struct Windows {
    std::vector<std::size_t> starts;
    std::vector<Window> windows;
  };
  static Windows by_unit(const Plan& plan, const std::vector<std::vector<std::uint32_t>>& unit_of_window,
                         std::size_t num_units);
  const Plan& plan_;
  Windows first_, last_;
};

}  // namespace peft::execution
