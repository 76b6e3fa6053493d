// Which of a load generator's many connections are ready: epoll where there is one, else poll.
#pragma once

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <system_error>
#include <vector>

#include "common/socket/fd.h"
#include "common/testing/outcome.h"
#ifdef __linux__
#include <sys/epoll.h>
#endif

struct Ready {
  std::size_t owner;
  bool read;
  bool write;
};

#ifdef __linux__
// Which are ready, by epoll, at a cost that is independent of how many are not.
class Waiter {
 public:
  void add(const Fd& fd, std::size_t owner, bool writing) {
    control(EPOLL_CTL_ADD, fd, owner, writing);
  }
  void change(const Fd& fd, std::size_t owner, bool writing) {
    control(EPOLL_CTL_MOD, fd, owner, writing);
  }
  void remove(const Fd& fd, std::size_t) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd.get(), nullptr);
  }

  // epoll_wait counts in milliseconds, and a schedule in microseconds: below one it is
  // ppoll that sleeps, on the epoll descriptor itself.
  const std::vector<Ready>& wait(std::chrono::nanoseconds limit) {
    ready_.clear();
    int count = take(std::max(0ms, std::chrono::floor<milliseconds>(limit)));
    if (count == 0 && limit > 0ns && limit < 1ms) {
      pollfd entry = {epoll_.get(), POLLIN, 0};
      const timespec time = {0, static_cast<long>(limit.count())};
      if (::ppoll(&entry, 1, &time, nullptr) > 0) count = take(0ms);
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(std::max(0, count)); ++i) {
      const epoll_event& event = events_[i];
      ready_.push_back({static_cast<std::size_t>(event.data.u64),
                        (event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0,
                        (event.events & EPOLLOUT) != 0});
    }
    return ready_;
  }

 private:
  int take(milliseconds limit) {
    return ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()),
                        static_cast<int>(limit.count()));
  }

  void control(int operation, const Fd& fd, std::size_t owner, bool writing) {
    epoll_event event{};
    event.events = writing ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.u64 = owner;
    if (::epoll_ctl(epoll_.get(), operation, fd.get(), &event) != 0) {
      throw std::system_error(errno, std::system_category(), "epoll_ctl");
    }
  }

  Fd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
  std::vector<epoll_event> events_ = std::vector<epoll_event>(256);
  std::vector<Ready> ready_;
};
#else
// Which are ready, by poll: portable, and costly with thousands of connections.
class Waiter {
 public:
  void add(const Fd& fd, std::size_t owner, bool writing) {
    if (entries_.size() <= owner) entries_.resize(owner + 1, {-1, 0, 0});
    const int events = writing ? POLLIN | POLLOUT : POLLIN;
    entries_[owner] = {fd.get(), static_cast<short>(events), 0};
  }
  void change(const Fd& fd, std::size_t owner, bool writing) { add(fd, owner, writing); }
  void remove(const Fd&, std::size_t owner) { entries_[owner].fd = -1; }

  // poll counts in milliseconds: what is left of one is spent asking again.
  const std::vector<Ready>& wait(std::chrono::nanoseconds limit) {
    ready_.clear();
    const auto most = static_cast<int>(std::max<std::chrono::nanoseconds>(0ns, limit) / 1ms);
    if (::poll(entries_.data(), static_cast<nfds_t>(entries_.size()), most) <= 0) return ready_;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const int events = entries_[i].revents;
      if (events == 0) continue;
      ready_.push_back({i, (events & (POLLIN | POLLHUP | POLLERR)) != 0, (events & POLLOUT) != 0});
    }
    return ready_;
  }

 private:
  std::vector<pollfd> entries_;
  std::vector<Ready> ready_;
};
#endif
