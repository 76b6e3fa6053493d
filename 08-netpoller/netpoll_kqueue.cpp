// Go: runtime/netpoll_kqueue.go.
#include <sys/types.h>  // OpenBSD wants it first

#include <sys/event.h>
#include <cerrno>

#include "netpoll.h"

constexpr int kBatch = 512;

Fd Netpoller::make_queue() { return Fd(::kqueue()); }

static bool change(const Fd& queue, int fd, short filter, std::uint16_t flags, std::uintptr_t tag) {
  struct kevent change {};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): it comes back as a number
  auto* data = reinterpret_cast<void*>(tag);
  EV_SET(&change, static_cast<std::uintptr_t>(fd), filter, flags, 0, 0, data);
  return ::kevent(queue.get(), &change, 1, nullptr, 0, nullptr) >= 0 || errno == EINTR;
}

// EV_CLEAR is edge-triggered: see netpoll_epoll.cpp. One end of the pipe (tag 0) is watched.
bool Netpoller::watch(int fd, std::uintptr_t tag) {
  return change(queue_, fd, EVFILT_READ, EV_ADD | EV_CLEAR, tag) &&
         (tag == 0 || change(queue_, fd, EVFILT_WRITE, EV_ADD | EV_CLEAR, tag));
}

// A BSD drops the filters when the descriptor is closed; libkqueue wants to be told.
void Netpoller::unwatch(int fd) {
  (void)change(queue_, fd, EVFILT_READ, EV_DELETE, 0);
  (void)change(queue_, fd, EVFILT_WRITE, EV_DELETE, 0);
}

// A short read does not mean the same on all these systems: there may always be `more`.
bool Netpoller::collect(std::chrono::milliseconds limit, GoroutineList& woken) {
  std::array<struct kevent, kBatch> events;
  const timespec left{.tv_sec = static_cast<std::time_t>(limit.count() / 1000),
                      .tv_nsec = static_cast<long>(limit.count() % 1000 * 1'000'000)};
  const int count = ::kevent(queue_.get(), nullptr, 0, events.data(), int{kBatch}, &left);
  if (count < 0 && errno != EINTR) fatal("kevent failed");
  for (int i = 0; i < count; ++i) {
    const struct kevent& event = events[static_cast<std::size_t>(i)];
    const bool reads = event.filter == EVFILT_READ;
    report(reinterpret_cast<std::uintptr_t>(event.udata), reads,
           !reads || (event.flags & EV_EOF) != 0, reads, woken);
  }
#ifdef __linux__  // libkqueue loses what does not fit into the list: all are told to try again
  const std::lock_guard lock(mutex_);
  for (auto desc = all_.begin(); count == kBatch && desc != all_.end(); ++desc)
    report(desc->tag(), true, true, true, woken);
#endif
  return count == kBatch;
}
