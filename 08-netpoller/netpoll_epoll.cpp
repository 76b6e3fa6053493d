// Go: runtime/netpoll_epoll.go.
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <system_error>

#include "netpoll.h"

namespace {

constexpr std::uint32_t kHungUp = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

}  // namespace

// epoll(7). But libfiu, and all that is like it, is preloaded.
// NOLINTNEXTLINE(concurrency-mt-unsafe): nobody sets it
const bool Netpoller::kShortReadsEnd = std::getenv("LD_PRELOAD") == nullptr;

Fd Netpoller::make_queue() { return Fd(::epoll_create1(EPOLL_CLOEXEC)); }

// Once, for both directions, for as long as it is open; edge-triggered, because the worker
// that is told need not be the one that reads.
bool Netpoller::watch(int fd, std::uint32_t sequence) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.u64 = (std::uint64_t{sequence} << 32) | static_cast<std::uint32_t>(fd);
  return ::epoll_ctl(queue_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

bool Netpoller::watch_write(int, std::uint32_t) { return true; }  // it is, already

void Netpoller::unwatch(int fd) { ::epoll_ctl(queue_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Netpoller::wait(std::chrono::milliseconds limit, GoroutineList& woken) {
  std::array<epoll_event, 128> events;
  const int timeout = static_cast<int>(limit.count());
  const int count = ::epoll_wait(queue_.get(), events.data(), std::size(events), timeout);
  if (count < 0 && errno != EINTR)
    throw std::system_error(errno, std::system_category(), "epoll_wait");
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    report(static_cast<int>(event.data.u64 & 0xffffffff),
           static_cast<std::uint32_t>(event.data.u64 >> 32),
           {.readable = (event.events & (EPOLLIN | kHungUp)) != 0,
            .writable = (event.events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0,
            .leaves_more = (event.events & (kHungUp | EPOLLPRI)) != 0},
           woken);
  }
}
