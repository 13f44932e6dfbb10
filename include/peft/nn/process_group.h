// Processes that train one adapter together, on one machine or several: each computes the gradients of its share of
// every step's micro batches. Needs the library peft::nn, and a libtorch that brings c10d's TCPStore.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace peft::nn {

class ProcessGroup {
 public:
  using Bytes = std::vector<std::uint8_t>;

  // As torchrun and others say it: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. nullptr where WORLD_SIZE is not set or
  // is 1. Waits until all processes are there. Throws USAGE for values that cannot be, NET_PEER where the others cannot
  // be reached.
  static std::shared_ptr<ProcessGroup> from_environment();
  // `port` is of rank 0, which serves the others at `address`.
  ProcessGroup(int rank, int size, const std::string& address, std::uint16_t port);
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const;
  int size() const;

  // All processes call these in the same order. They throw NET_PEER where a process has failed or does not answer.
  std::vector<Bytes> gather(const Bytes& own);  // what each rank gave, in their order: at rank 0. Elsewhere nothing
  Bytes broadcast(const Bytes& own);            // what rank 0 gave

  // Tells the others why this process ends, so that they do not wait for it.
  void fail(const std::string& why) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace peft::nn
