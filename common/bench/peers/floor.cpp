// The floor: the least code that echoes with epoll, to measure the others against.
//
// It keeps no state for a connection. So it loses the bytes that a write does not take,
// and spins when descriptors run out: a yardstick, not an echo server.
#include <sys/epoll.h>

#include <array>
#include <exception>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

namespace {

void watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

[[noreturn]] void serve(const Fd& listener) {
  const int epoll = ::epoll_create1(0);
  watch(epoll, listener.get());
  std::array<epoll_event, 128> events;
  std::array<char, 16 * 1024> buffer;
  for (;;) {
    const int count = ::epoll_wait(epoll, events.data(), std::size(events), -1);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (fd == listener.get()) {
        watch(epoll, accept_from(listener, Mode::non_blocking).connection.release());
        continue;
      }
      const ssize_t size = ::read(fd, buffer.data(), buffer.size());
      if (size <= 0 || ::write(fd, buffer.data(), static_cast<std::size_t>(size)) < 0) ::close(fd);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options("The least code that echoes with epoll; a yardstick, not a server.");
  options.add(endpoint);
  options.parse(argc, argv);
  try {
    ignore_sigpipe();
    raise_descriptor_limit();
    const Fd listener = listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking);
    announce(listener);
    serve(listener);
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
