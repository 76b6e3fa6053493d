// What a server sets up once for the whole process, and how it logs.
#pragma once

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "common/socket/fd.h"

// Why a server cannot start, in one line for its user.
struct StartupError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Opens /dev/null as stdin, stdout or stderr if that is closed. Otherwise a socket would
// get the number, and its client would be sent the server's log.
void keep_standard_descriptors();

// Raises the soft limit on descriptors to the hard one and returns it. Shells
// pass on a soft limit, often 1024 or 256, kept low for the sake of select (03).
// Source: getrlimit(2).
std::size_t raise_descriptor_limit();

// Writing to a connection that the peer has closed and reset then fails with EPIPE
// instead of killing the process. MSG_NOSIGNAL would do it per call, but not on macOS.
// And a log in a file that has reached its limit (RLIMIT_FSIZE) fails with EFBIG: SIGXFSZ
// is ignored too. Source: write(2), signal(7).
void ignore_sigpipe();

// The signals that ask a server to stop, SIGINT and SIGTERM, without those that it inherits
// as ignored: a script's shell ignores SIGINT for `server &`, and Ctrl-C is then not meant
// for the server. From now on no signal is blocked: a mask is inherited too, and a
// server whose parent had blocked these two could only be killed. Source: signal(7).
std::vector<int> unblock_stop_signals();

// Makes the stop signals end the process, even as process 1 of a container. The kernel spares
// process 1 every signal without a handler, so there it gets one, and exits with 128 + the
// signal's number. Source: pid_namespaces(7).
void die_of_stop_signals();

// Prints "listening on 127.0.0.1:8080", the one line a server has for stdout, and
// flushes it. Throws StartupError when stdout does not take it.
void announce(const Fd& listener);

// What errno `error` means, until this thread asks again. Source: strerror_r(3): the text of
// strerror is shared between threads on FreeBSD and OpenBSD.
const char* error_text(int error);

// Writes one line of at most 500 bytes to stderr. It cannot fail and never blocks: it
// allocates no memory, and a line that stderr does not take at once (closed, or a full
// pipe) is lost.
void log_text(std::string_view line);

template <typename... Args>
void log_line(fmt::format_string<Args...> format, Args&&... args) {
  std::array<char, 501> line;
  char* end = fmt::format_to_n(line.data(), 500, format, std::forward<Args>(args)...).out;
  *end++ = '\n';
  log_text({line.data(), static_cast<std::size_t>(end - line.data())});
}

// Lets one message through per second, so that a lasting fault cannot fill a disk.
// Any thread may call it.
class OncePerSecond {
 public:
  bool operator()();

 private:
  std::atomic<std::int64_t> next_{0};  // of steady_clock, in nanoseconds; 0: never yet
};
