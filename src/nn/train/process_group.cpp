#include "peft/nn/process_group.h"

#include <fmt/core.h>

#include <charconv>
#include <cstdlib>
#include <optional>

#include "peft/error.h"

#if __has_include(<torch/csrc/distributed/c10d/TCPStore.hpp>)
#define PEFT_HAVE_TCP_STORE
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#endif

namespace peft::nn {
namespace {

using std::chrono::milliseconds;

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::int64_t number(const char* name, std::int64_t least, std::int64_t most) {
  const std::string_view text = variable(name);
  std::int64_t value = -1;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && rest == text.data() + text.size() && value >= least && value <= most) return value;
  throw Error(ErrorCode::USAGE, {.tensor = name,
                                 .problem = "a variable of the environment that cannot be",
                                 .expected = fmt::format("{} to {}", least, most),
                                 .got = text.empty() ? "nothing" : std::string(text),
                                 .hint = "torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"});
}

[[noreturn]] void lost(const std::string& problem, const std::string& got) {
  throw Error(ErrorCode::NET_PEER,
              {.problem = problem, .got = got, .hint = "look at the messages of the other processes"});
}

}  // namespace

#ifdef PEFT_HAVE_TCP_STORE

namespace {

constexpr milliseconds kTimeout{30 * 60 * 1000};  // a process may load a large model meanwhile
constexpr milliseconds kPoll{1000};               // how often a waiting process asks whether another has failed
constexpr milliseconds kGoodbye{10 * 1000};       // rank 0 ends last, as it serves the others
constexpr const char* kFailed = "failed";

}  // namespace

struct ProcessGroup::Impl {
  int rank, size;
  std::unique_ptr<c10d::TCPStore> store;
  std::string prefix;      // of this start of the run: torchrun keeps its store when it starts processes anew
  std::int64_t calls = 0;  // the same in all processes
  std::vector<std::string> read_by_all_soon;  // broadcasts: whoever sends again has read them

  std::string key(const std::string& name) const { return prefix + name; }
  std::string gather_key(int from) const { return key(fmt::format("gather/{}/{}", calls, from)); }

  template <typename Action>
  auto talk(Action&& action) {
    try {
      return action();
    } catch (const std::exception& error) {
      lost("the other processes of the run cannot be reached", first_line(error.what()));
    }
  }
  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  Bytes await(const std::string& wanted) {
    for (milliseconds waited{0};; waited += kPoll) {
      try {
        store->wait({wanted}, kPoll);
        break;
      } catch (const std::exception& error) {
        const bool failed = talk([&] { return store->check({key(kFailed)}); });
        if (failed) {
          const Bytes why = talk([&] { return store->get(key(kFailed)); });
          lost("another process of the run has failed", std::string(why.begin(), why.end()));
        }
        if (waited >= kTimeout) lost("another process of the run does not answer", first_line(error.what()));
      }
    }
    return talk([&] { return store->get(wanted); });
  }
};

ProcessGroup::ProcessGroup(int rank, int size, const std::string& address, std::uint16_t port)
    : impl_(std::make_unique<Impl>()) {
  impl_->rank = rank, impl_->size = size;
  // torchrun serves a store of its own at this address.
  const bool served = std::string_view(variable("TORCHELASTIC_USE_AGENT_STORE")) == "True";
  c10d::TCPStoreOptions options;
  options.port = port, options.isServer = rank == 0 && !served, options.timeout = kTimeout;
  if (!served) options.numWorkers = static_cast<std::size_t>(size);
  impl_->prefix = fmt::format("peft/{}/{}/", variable("TORCHELASTIC_RUN_ID"), variable("TORCHELASTIC_RESTART_COUNT"));
  impl_->talk([&] { impl_->store = std::make_unique<c10d::TCPStore>(address, options); });
}

std::vector<ProcessGroup::Bytes> ProcessGroup::gather(const Bytes& own) {
  Impl& impl = *impl_;
  ++impl.calls;
  std::vector<Bytes> all;
  if (impl.rank != 0) {
    impl.talk([&] { impl.store->set(impl.gather_key(impl.rank), own); });
    return all;
  }
  all.push_back(own);
  for (int from = 1; from < impl.size; ++from) {
    all.push_back(impl.await(impl.gather_key(from)));
    impl.talk([&] { impl.store->deleteKey(impl.gather_key(from)); });
  }
  for (const std::string& key : impl.read_by_all_soon) impl.talk([&] { impl.store->deleteKey(key); });
  impl.read_by_all_soon.clear();
  return all;
}

ProcessGroup::Bytes ProcessGroup::broadcast(const Bytes& own) {
  Impl& impl = *impl_;
  const std::string key = impl.key(fmt::format("broadcast/{}", ++impl.calls));
  if (impl.rank != 0) return impl.await(key);
  impl.talk([&] { impl.store->set(key, own); });
  impl.read_by_all_soon.push_back(key);
  return own;
}

void ProcessGroup::fail(const std::string& why) noexcept {
  try {
    const std::string text = fmt::format("rank {}: {}", impl_->rank, Impl::first_line(why));
    impl_->store->set(impl_->key(kFailed), Bytes(text.begin(), text.end()));
  } catch (const std::exception&) {  // nobody is there to be told
  }
}

ProcessGroup::~ProcessGroup() {
  try {
    Impl& impl = *impl_;
    const auto done = [&](int rank) { return impl.key(fmt::format("done/{}", rank)); };
    if (impl.rank != 0) {
      impl.store->set(done(impl.rank), Bytes{1});
      return;
    }
    std::vector<std::string> others;
    for (int rank = 1; rank < impl.size; ++rank) others.push_back(done(rank));
    impl.store->wait(others, kGoodbye);
  } catch (const std::exception&) {  // a process has failed, and has said so
  }
}

#else

struct ProcessGroup::Impl {
  int rank, size;
};

ProcessGroup::ProcessGroup(int, int, const std::string&, std::uint16_t) {
  throw Error(ErrorCode::NET_PEER, {.problem = "this program was built with a libtorch that has no TCPStore",
                                    .hint = "without WORLD_SIZE, training runs in one process"});
}
std::vector<ProcessGroup::Bytes> ProcessGroup::gather(const Bytes& own) { return {own}; }
ProcessGroup::Bytes ProcessGroup::broadcast(const Bytes& own) { return own; }
void ProcessGroup::fail(const std::string&) noexcept {}
ProcessGroup::~ProcessGroup() = default;

#endif

int ProcessGroup::rank() const { return impl_->rank; }
int ProcessGroup::size() const { return impl_->size; }

std::shared_ptr<ProcessGroup> ProcessGroup::from_environment() {
  constexpr std::int64_t kMost = 1 << 20;
  if (*variable("WORLD_SIZE") == '\0') return nullptr;
  const std::int64_t size = number("WORLD_SIZE", 1, kMost);
  if (size == 1) return nullptr;
  const std::int64_t rank = number("RANK", 0, size - 1), port = number("MASTER_PORT", 1, 65535);
  if (*variable("MASTER_ADDR") == '\0') {
    throw Error(ErrorCode::USAGE, {.tensor = "MASTER_ADDR",
                                   .problem = "a variable of the environment that is needed is not set",
                                   .expected = "the address of rank 0"});
  }
  return std::make_shared<ProcessGroup>(static_cast<int>(rank), static_cast<int>(size), variable("MASTER_ADDR"),
                                        static_cast<std::uint16_t>(port));
}

}  // namespace peft::nn
