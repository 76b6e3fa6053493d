// Poller: what the kernel watches for us, and the wait for what is ready.
//
// It is what differed between 04 and 05, and nothing else. CMake takes one of its two
// source files, poller_epoll.cpp or poller_kqueue.cpp; no other file knows which.
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

// A descriptor that need not be waited for. For epoll an error counts as both.
struct Ready {
  int fd;
  bool readable;
  bool writable;
};

class Poller {
 public:
  Poller();  // throws StartupError

  // What `fd` is watched for from now on; `was` is what this was called with before,
  // or kNone. False: the kernel has no room for one more. Take a descriptor off
  // (kNone) before you close it. Throws std::system_error: a bug.
  bool set_interest(int fd, Interest was, Interest now);

  // Waits until a descriptor is ready, or `limit` has passed (without one: for ever), or a
  // signal came. Level-triggered: what is not served is reported again. What it returns
  // is valid until the next wait. Source: epoll_wait(2), kevent(2).
  std::span<const Ready> wait(std::optional<std::chrono::milliseconds> limit);

 private:
  static constexpr std::size_t kBatch = 128;

  Fd fd_;
  std::array<Ready, kBatch> ready_;
};
