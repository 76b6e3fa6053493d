// Poller: tells the kernel what to watch, and waits for what is ready.
//
// It is all that differed between 04 and 05. CMake takes one of its two source files,
// poller_epoll.cpp or poller_kqueue.cpp; no other file knows which.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <span>

#include "common/socket/fd.h"

// What a connection waits for next.
struct Interest {
  bool read = false;
  bool write = false;
  bool operator==(const Interest&) const = default;
};
inline constexpr Interest kNone{};
inline constexpr Interest kRead{.read = true};

// A descriptor that is ready. With epoll an error counts as readable and writable.
struct Ready {
  int fd;
  bool readable;
  bool writable;
};

class Poller {
 public:
  Poller();  // throws StartupError

  // Sets what `fd` is watched for; `was` is what the last call set, or kNone. Returns false
  // if the kernel has no room for one more. Set kNone before you close a descriptor. Throws
  // std::system_error, which is a bug.
  bool set_interest(int fd, Interest was, Interest now);

  // Waits until a descriptor is ready, `limit` has passed (without one: for ever), or a
  // signal came. Level-triggered: what is not served is reported again. The result is valid
  // until the next wait. Source: epoll_wait(2), kevent(2).
  std::span<const Ready> wait(std::optional<std::chrono::milliseconds> limit);

 private:
  static constexpr std::size_t kBatch = 128;

  Fd fd_;
  std::array<Ready, kBatch> ready_;
};
