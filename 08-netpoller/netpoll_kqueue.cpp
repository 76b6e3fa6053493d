// Go: runtime/netpoll_kqueue.go.
#include <sys/types.h>  // OpenBSD wants it first

#include <sys/event.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <system_error>

#include "netpoll.h"

namespace {

constexpr std::size_t kBatch = 128;

// The sequence travels in the event, as a pointer that points to nothing.
void* tag(std::uint32_t sequence) {
  return reinterpret_cast<void*>(std::uintptr_t{sequence});  // NOLINT(performance-no-int-to-ptr)
}

bool add(const Fd& queue, int fd, short filter, unsigned short how, std::uint32_t sequence) {
  struct kevent change {};
  EV_SET(&change, static_cast<std::uintptr_t>(fd), filter, EV_ADD | how, 0, 0, tag(sequence));
  return ::kevent(queue.get(), &change, 1, nullptr, 0, nullptr) >= 0 || errno == EINTR;
}

}  // namespace

const bool Netpoller::kShortReadsEnd = false;  // kqueue(2) has no word of it

Fd Netpoller::make_queue() { return Fd(::kqueue()); }

// For reading once, for as long as it is open; EV_CLEAR, because the worker that is told and
// the one that reads need not be the same.
bool Netpoller::watch(int fd, std::uint32_t sequence) {
  return add(queue_, fd, EVFILT_READ, EV_CLEAR, sequence);
}

// For writing when it has to wait. (Go has both filters from the start. But libkqueue
// loses events when those of both do not fit into one list.)
bool Netpoller::watch_write(int fd, std::uint32_t sequence) {
  return add(queue_, fd, EVFILT_WRITE, EV_CLEAR | EV_ONESHOT, sequence);
}

// A BSD drops the filters when the descriptor is closed; libkqueue wants to be told.
void Netpoller::unwatch(int fd) {
  for (const short filter : {short{EVFILT_READ}, short{EVFILT_WRITE}}) {
    struct kevent change {};
    EV_SET(&change, static_cast<std::uintptr_t>(fd), filter, EV_DELETE, 0, 0, nullptr);
    ::kevent(queue_.get(), &change, 1, nullptr, 0, nullptr);
  }
}

void Netpoller::wait(std::chrono::milliseconds limit, GoroutineList& woken) {
  std::array<struct kevent, kBatch> events;
  timespec left{};
  left.tv_sec = static_cast<std::time_t>(limit.count() / 1000);
  left.tv_nsec = static_cast<long>(limit.count() % 1000 * 1'000'000);
  const int count =
      ::kevent(queue_.get(), nullptr, 0, events.data(), static_cast<int>(events.size()), &left);
  if (count < 0 && errno != EINTR) throw std::system_error(errno, std::system_category(), "kevent");
  for (int i = 0; i < count; ++i) {
    const struct kevent& event = events[static_cast<std::size_t>(i)];
    report(static_cast<int>(event.ident),
           static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(event.udata)),
           {.readable = event.filter == EVFILT_READ,
            .writable = event.filter == EVFILT_WRITE || (event.flags & EV_EOF) != 0,
            .leaves_more = (event.flags & EV_EOF) != 0},
           woken);
  }
}
