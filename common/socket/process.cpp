#include "common/socket/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "common/socket/address.h"

namespace {

// strerror_r returns the text (GNU), or whether it is in the buffer (POSIX).
[[maybe_unused]] const char* text_of(const char* text, const char*) { return text; }
[[maybe_unused]] const char* text_of(int, const char* buffer) { return buffer; }

}  // namespace

std::size_t raise_descriptor_limit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    throw std::system_error(errno, std::system_category(), "getrlimit");
  }
  const rlim_t soft = std::exchange(limit.rlim_cur, limit.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    // macOS calls the hard limit infinite but grants OPEN_MAX (10,240).
    limit.rlim_cur = soft;
#ifdef OPEN_MAX
    limit.rlim_cur = std::max<rlim_t>(soft, OPEN_MAX);
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = soft;
#endif
  }
  return static_cast<std::size_t>(limit.rlim_cur);
}

void ignore_sigpipe() {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): SIG_IGN is such a cast
  for (const int number : {SIGPIPE, SIGXFSZ}) std::signal(number, SIG_IGN);
}

std::vector<int> unblock_stop_signals() {
  sigset_t none;
  sigemptyset(&none);
  ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
  std::vector<int> heeded;
  for (const int number : {SIGINT, SIGTERM}) {
    struct sigaction now {};
    ::sigaction(number, nullptr, &now);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): SIG_IGN is such a cast
    if (now.sa_handler != SIG_IGN) heeded.push_back(number);
  }
  return heeded;
}

void die_of_stop_signals() {
  for (const int number : unblock_stop_signals())
    if (::getpid() == 1) std::signal(number, [](int signal) { ::_exit(128 + signal); });
}

void announce(const Fd& listener) {
  const std::string line = "listening on " + to_text(local_address(listener)) + "\n";
  // fwrite, not fmt::print: that throws its own error, and the fault may show at the flush.
  if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size() || std::fflush(stdout) != 0) {
    throw StartupError(fmt::format("cannot write to stdout: {}", error_text(errno)));
  }
}

void keep_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // Read-only on stdout, so that announce fails: its line would reach no reader.
    const int flags = fd == STDOUT_FILENO ? O_RDONLY : O_RDWR;
    if (::open("/dev/null", flags) != fd) throw StartupError("cannot open /dev/null");
  }
}

const char* error_text(int error) {
  static thread_local std::array<char, 128> buffer;
  return text_of(::strerror_r(error, buffer.data(), buffer.size()), buffer.data());
}

void log_text(std::string_view line) {
  pollfd entry = {STDERR_FILENO, POLLOUT, 0};
  if (::poll(&entry, 1, 0) != 1 || (entry.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

bool OncePerSecond::operator()() {
  const std::int64_t now =
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::int64_t next = next_.load();
  return (next == 0 || now >= next) && next_.compare_exchange_strong(next, now + 1'000'000'000);
}
