// Go: runtime/netpoll_epoll.go.
#include <sys/epoll.h>
#include <cerrno>

#include "netpoll.h"

constexpr std::uint32_t kHungUp = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

Fd Netpoller::make_queue() { return Fd(::epoll_create1(EPOLL_CLOEXEC)); }
void Netpoller::unwatch(int fd) { ::epoll_ctl(queue_.get(), EPOLL_CTL_DEL, fd, nullptr); }

// Registers once, until it is closed. Edge-triggered, because the worker that polls is not the
// one that reads: the poller would be told of the same bytes again and again.
bool Netpoller::watch(int fd, std::uintptr_t tag) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = tag;
  return ::epoll_ctl(queue_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

// A read that got less than it asked for took everything: epoll(7). But it stops before an
// urgent byte, and nothing is reported after the end.
bool Netpoller::collect(std::chrono::milliseconds limit, GoroutineList& woken) {
  std::array<epoll_event, 128> events;
  const int timeout = static_cast<int>(limit.count());
  const int count = ::epoll_wait(queue_.get(), events.data(), std::size(events), timeout);
  if (count < 0 && errno != EINTR) fatal("epoll_wait failed");
  for (int i = 0; i < count; ++i) {
    const auto [bits, data] = events[static_cast<std::size_t>(i)];
    report(static_cast<std::uintptr_t>(data.u64), (bits & (EPOLLIN | kHungUp)) != 0,
           (bits & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0, (bits & (kHungUp | EPOLLPRI)) != 0,
           woken);
  }
  return count == std::ssize(events);
}
