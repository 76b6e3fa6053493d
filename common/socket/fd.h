// Fd owns one file descriptor and closes it exactly once.
//
// Moving hands the descriptor over; an empty Fd holds -1. An error of close(2) is ignored:
// on Linux, macOS and the BSDs the descriptor is free whatever close returns, and to close
// it again could close another owner's descriptor.
#pragma once

#include <unistd.h>

#include <utility>

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    reset(other.release());
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  // Gives the descriptor away: the caller closes it.
  int release() { return std::exchange(fd_, -1); }

  // Closes the descriptor that it owns, and owns `fd` instead.
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};
