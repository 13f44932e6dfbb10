// What several threads need one after the other: made once, by the first who asks, and kept for a while.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

namespace peft::execution {

template <class Key, class Value>
class SharedStore {
 public:
  explicit SharedStore(std::size_t entries) : kept_(entries) {}

  // At least so many of the entries used last are kept.
  void keep(std::size_t entries) {
    const std::lock_guard lock(mutex_);
    kept_ = std::max(kept_, entries);
  }

  // make() returns the value; others who ask for it meanwhile wait. It stays as long as it is held.
  template <class Make>
  std::shared_ptr<const Value> get(const Key& key, const Make& make) {
    std::shared_ptr<Entry> entry;
    {
      const std::lock_guard lock(mutex_);
      const auto known = std::find_if(entries_.begin(), entries_.end(), [&](const auto& e) { return e.first == key; });
      if (known != entries_.end()) {
        entries_.splice(entries_.begin(), entries_, known);
      } else {
        entries_.emplace_front(key, std::make_shared<Entry>());
        while (entries_.size() > kept_) entries_.pop_back();
      }
      entry = entries_.front().second;
    }
    std::call_once(entry->made, [&] { entry->value = std::make_shared<const Value>(make()); });
    return entry->value;
  }

 private:
  struct Entry {
    std::once_flag made;
    std::shared_ptr<const Value> value;
  };
  std::mutex mutex_;
  std::size_t kept_;
  std::list<std::pair<Key, std::shared_ptr<Entry>>> entries_;  // the one used last in front
};

}  // namespace peft::execution
