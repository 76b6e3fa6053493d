// What a server sets up once for the whole process, and how it says things.
#pragma once

#include <fmt/core.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/socket/fd.h"

// Why a server cannot start, as one line for its user.
struct StartupError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Raises the soft limit on descriptors to the hard one and returns it. Shells
// start programs with a soft limit of 1024 or 256 for the sake of select (03).
// Source: getrlimit(2).
std::size_t raise_descriptor_limit();

// Writing to a connection that the peer has reset then fails with EPIPE instead
// of killing the process. MSG_NOSIGNAL would do it per call, but not on macOS.
// Source: write(2), signal(7).
void ignore_sigpipe();

// Prints "listening on 127.0.0.1:8080", the one line a server has for stdout, and
// flushes it. Throws StartupError when stdout does not take it.
void announce(const Fd& listener);

// Writes one whole line to stderr. A line that stderr does not take (it is closed,
// or a pipe that nobody reads) is lost: a server does not die of its log.
void log_text(std::string line);

template <typename... Args>
void log_line(fmt::format_string<Args...> format, Args&&... args) {
  log_text(fmt::format(format, std::forward<Args>(args)...));
}

// Lets one message through per second, so that a fault which lasts cannot fill
// a disk. Any thread may ask.
class OncePerSecond {
 public:
  bool operator()();

 private:
  std::atomic<std::int64_t> next_{0};  // of steady_clock, in nanoseconds; 0: never yet
};
