#include <sys/epoll.h>

#include <cerrno>
#include <system_error>

#include "common/socket/process.h"
#include "poller.h"

Poller::Poller() : fd_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!fd_) throw StartupError(fmt::format("no epoll: {}", error_text(errno)));
}

bool Poller::set_interest(int fd, Interest was, Interest now) {
  if (was == now) return true;
  const int change = was == kNone ? EPOLL_CTL_ADD : now == kNone ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
  epoll_event event{};
  event.events = (now.read ? EPOLLIN : 0u) | (now.write ? EPOLLOUT : 0u);
  event.data.fd = fd;
  if (::epoll_ctl(fd_.get(), change, fd, &event) == 0) return true;
  if (errno == ENOSPC || errno == ENOMEM) return false;
  throw std::system_error(errno, std::system_category(), "epoll_ctl");
}

std::span<const Ready> Poller::wait(std::optional<std::chrono::milliseconds> limit) {
  std::array<epoll_event, kBatch> events;
  const int timeout = limit ? static_cast<int>(limit->count()) : -1;
  const int count = ::epoll_wait(fd_.get(), events.data(), std::size(events), timeout);
  if (count < 0 && errno == EINTR) return {};
  if (count < 0) throw std::system_error(errno, std::system_category(), "epoll_wait");
  const auto size = static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < size; ++i) {
    const bool error = events[i].events & (EPOLLERR | EPOLLHUP);
    ready_[i] = {events[i].data.fd, error || (events[i].events & EPOLLIN),
                 error || (events[i].events & EPOLLOUT)};
  }
  return {ready_.data(), size};
}
