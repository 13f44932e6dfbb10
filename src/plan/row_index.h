// Finds the blocks or updates that cover given rows of a tensor. A tensor may have thousands of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace peft::plan {

class RowIndex {
 public:
  RowIndex() = default;
  // begin_of(i) and end_of(i) give the rows [begin, end) of item i, for i < count.
  template <class Begin, class End>
  RowIndex(std::size_t count, const Begin& begin_of, const End& end_of) {
    entries_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) entries_.push_back({begin_of(i), end_of(i), 0, i});
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.item < b.item; });
    std::int64_t latest = 0;
    for (Entry& entry : entries_) entry.latest = latest = std::max(latest, entry.end);
  }

  // Calls visit(item) for each item that has rows in [begin, end), in the order of their first rows.
  template <class Visit>
  void find(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    auto it = std::partition_point(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.latest <= begin; });
    for (; it != entries_.end() && it->begin < end; ++it) {
      if (it->end > begin) visit(it->item);
    }
  }

 private:
  struct Entry {
    std::int64_t begin, end;
    std::int64_t latest;  // the largest `end` up to here
    std::size_t item;
  };
  std::vector<Entry> entries_;
};

}  // namespace peft::plan
