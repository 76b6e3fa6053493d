#include <sys/types.h>  // OpenBSD wants it first

#include <sys/event.h>

#include <cerrno>
#include <ctime>
#include <system_error>

#include "common/socket/process.h"
#include "poller.h"

namespace {

// Adds or deletes the filter of one direction. Returns false if there is no room for it.
bool change(const Fd& kqueue, int fd, short filter, bool wanted) {
  struct kevent event {};
  EV_SET(&event, static_cast<std::uintptr_t>(fd), filter, wanted ? EV_ADD : EV_DELETE, 0, 0,
         nullptr);
  // EINTR: the change is made. ENOENT: it was never added, because there was no room.
  if (::kevent(kqueue.get(), &event, 1, nullptr, 0, nullptr) >= 0 || errno == EINTR) return true;
  if (!wanted && errno == ENOENT) return true;
  if (errno == ENOMEM) return false;
  throw std::system_error(errno, std::system_category(), "kevent");
}

}  // namespace

Poller::Poller() : fd_(::kqueue()) {
  if (!fd_) throw StartupError(fmt::format("no kqueue: {}", error_text(errno)));
}

// 05 passed its changes with the next wait. Here each is made at once, as with epoll. That
// costs a system call when interest changes, which is rare. A failure that the loop learns
// of later, by an event, would be harder to explain.
bool Poller::set_interest(int fd, Interest was, Interest now) {
  return (was.read == now.read || change(fd_, fd, EVFILT_READ, now.read)) &&
         (was.write == now.write || change(fd_, fd, EVFILT_WRITE, now.write));
}

std::span<const Ready> Poller::wait(std::optional<std::chrono::milliseconds> limit) {
  std::array<struct kevent, kBatch> events;
  timespec left{};
  if (limit) {
    left.tv_sec = static_cast<std::time_t>(limit->count() / 1000);
    left.tv_nsec = static_cast<long>(limit->count() % 1000 * 1'000'000);
  }
  const int count = ::kevent(fd_.get(), nullptr, 0, events.data(), static_cast<int>(kBatch),
                             limit ? &left : nullptr);
  if (count < 0 && errno == EINTR) return {};
  if (count < 0) throw std::system_error(errno, std::system_category(), "kevent");
  const auto size = static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < size; ++i) {
    ready_[i] = {static_cast<int>(events[i].ident), events[i].filter == EVFILT_READ,
                 events[i].filter == EVFILT_WRITE};
  }
  return {ready_.data(), size};
}
