// Finds what covers some of a tensor's rows without looking at everything: a tensor may have thousands of blocks and
// updates.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace peft::execution {

class RowIndex {
 public:
  RowIndex() = default;
  // `begin_of` and `end_of` give the rows [begin, end) of each of `count` things.
  template <class Begin, class End>
  RowIndex(std::size_t count, const Begin& begin_of, const End& end_of) {
    entries_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) entries_.push_back({begin_of(i), end_of(i), 0, i});
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.thing < b.thing;
    });
    std::int64_t latest = 0;
    for (Entry& entry : entries_) entry.latest = latest = std::max(latest, entry.end);
  }

  // visit(thing) for each that has rows in [begin, end), in the order of their first rows.
  template <class Visit>
  void find(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    auto it = std::partition_point(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.latest <= begin; });
    for (; it != entries_.end() && it->begin < end; ++it) {
      if (it->end > begin) visit(it->thing);
    }
  }

 private:
  struct Entry {
    std::int64_t begin, end;
    std::int64_t latest;  // the largest `end` up to here
    std::size_t thing;
  };
  std::vector<Entry> entries_;
};

}  // namespace peft::execution
