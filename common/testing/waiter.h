// Which of many sockets are ready: epoll where it exists, otherwise poll.
#pragma once

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <system_error>
#include <vector>

#include "common/socket/fd.h"
#include "common/testing/outcome.h"
#ifdef __linux__
#include <sys/epoll.h>

class Waiter {
 public:
  // Watches the socket for POLLIN, POLLOUT or both. A second call replaces the first.
  void watch(const Fd& fd, std::size_t owner, short events) {
    epoll_event event{};
    event.events = static_cast<std::uint32_t>(events);  // EPOLLIN is POLLIN, EPOLLOUT is POLLOUT
    event.data.u64 = owner;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd.get(), &event) == 0) return;
    if (errno != ENOENT || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) {
      throw std::system_error(errno, std::system_category(), "epoll_ctl");
    }
  }
  void remove(const Fd& fd, std::size_t) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd.get(), nullptr);
  }

  // Calls handle(owner, events) for each socket that becomes ready within `limit`.
  // epoll_wait counts in milliseconds, a schedule in microseconds: a wait below one
  // millisecond is a ppoll on the epoll descriptor itself.
  template <typename Handle>
  void wait(std::chrono::nanoseconds limit, Handle handle) {
    int count = take(std::max(0ms, std::chrono::floor<milliseconds>(limit)));
    if (count == 0 && limit > 0ns && limit < 1ms) {
      pollfd entry = {epoll_.get(), POLLIN, 0};
      const timespec time = {0, static_cast<long>(limit.count())};
      if (::ppoll(&entry, 1, &time, nullptr) > 0) count = take(0ms);
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(std::max(0, count)); ++i) {
      handle(static_cast<std::size_t>(events_[i].data.u64), static_cast<short>(events_[i].events));
    }
  }

 private:
  int take(milliseconds limit) {
    return ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()),
                        static_cast<int>(limit.count()));
  }

  Fd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
  std::vector<epoll_event> events_ = std::vector<epoll_event>(256);
};
#else
class Waiter {
 public:
  void watch(const Fd& fd, std::size_t owner, short events) {
    if (entries_.size() <= owner) entries_.resize(owner + 1, {-1, 0, 0});
    entries_[owner] = {fd.get(), events, 0};
  }
  void remove(const Fd&, std::size_t owner) { entries_[owner].fd = -1; }

  // poll counts in milliseconds. The rest of a millisecond is spent in repeated calls.
  template <typename Handle>
  void wait(std::chrono::nanoseconds limit, Handle handle) {
    const auto most = static_cast<int>(std::max<std::chrono::nanoseconds>(0ns, limit) / 1ms);
    if (::poll(entries_.data(), static_cast<nfds_t>(entries_.size()), most) <= 0) return;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].revents != 0) handle(i, entries_[i].revents);
    }
  }

 private:
  std::vector<pollfd> entries_;
};
#endif
