// PollDesc: a descriptor, and who uses it and waits for it. Netpoller: reports events to
// PollDescs. Go: runtime/netpoll.go, internal/poll/fd_mutex.go, internal/poll/fd_unix.go.
#pragma once

#include <array>
#include <chrono>
#include <deque>
#include <mutex>

#include "common/socket/socket.h"
#include "park_slot.h"

using Clock = std::chrono::steady_clock;
constexpr auto kNever = Clock::time_point::max();
constexpr auto kPast = Clock::time_point::min();

struct Timer {
  virtual void fire() noexcept = 0;            // called by a worker that holds no lock
  std::atomic<Clock::time_point> due{kNever};  // changed by the Scheduler only
  ~Timer() = default;
};

// How an operation ends, beside Io::ok, Io::end and Io::out_of_resources.
constexpr Io kTimedOut = Io::would_block;  // its deadline has passed
constexpr Io kClosed = Io::peer_gone;      // by the peer, or by close()
enum Direction : std::uint8_t { kRead, kWrite };

// A connection or a listener has one. It is never freed before the Netpoller, only used again.
// Aligned, so that seven bits of its address are free for a sequence number (tag).
class alignas(128) PollDesc final : private Timer {
 public:
  explicit PollDesc(class Scheduler& scheduler) : scheduler_(scheduler) {}

  // Its users. The last to leave closes the descriptor, so that its number is not given to
  // another connection while a system call may still use it.
  enum User : std::uint8_t { kReader = 1, kWriter = 2, kOwner = 4, kVisitor = 8, kClosing = 16 };
  bool enter(User user);  // false: it is closed
  void leave(User user);
  void close();  // any thread; what waits is woken, and fails, as does what comes later
  bool closed() const { return (use_ & kClosing) != 0; }

  // Any thread. Once its timer has fired, what begins fails; so does what waits, after a last call:
  // bytes that came in time are not lost. Without memory for the timer it passes at once.
  void set_deadline(Direction direction, Clock::time_point at) noexcept;
  bool expired(Direction direction) const { return deadlines_[direction].load() == kPast; }

  // What its events carry: the address, and a number that is another one for each owner.
  std::uintptr_t tag() const { return reinterpret_cast<std::uintptr_t>(this) | sequence_; }
  const Fd& fd() const { return fd_; }
  std::array<ParkSlot<Goroutine>, 2> slots;
  bool drained = false;            // the last read took everything: the next waits for an event
  std::atomic<bool> more = false;  // an event has said that a read may stop short

 private:
  friend class Netpoller;
  void wake(Direction direction);
  void fire() noexcept override;
  Scheduler& scheduler_;
  PollDesc* next_free_ = nullptr;
  std::array<std::atomic<Clock::time_point>, 2> deadlines_{};
  Fd fd_;
  std::atomic<std::uint8_t> use_ = kClosing;
  std::atomic<std::uint8_t> sequence_ = 0;
};

class Netpoller {
 public:
  explicit Netpoller(Scheduler& scheduler);

  // Watches a non-blocking descriptor until it is closed. Throws std::system_error and
  // std::bad_alloc, and closes it.
  PollDesc* open(Fd fd);

  // Waits for events, until `until` or break_poll. Returns the goroutines that waited for
  // them. One worker at a time.
  GoroutineList poll(Clock::time_point until);
  void break_poll();  // any thread; if no poll waits, the next one does not
  void report(std::uintptr_t tag, bool readable, bool writable, bool more, GoroutineList& woken);
  // Shutdown: no read has a deadline after `at`; it is `at` where output is under way.
  void limit_reads(Clock::time_point at);

 private:
  friend class PollDesc;
  // In netpoll_epoll.cpp and netpoll_kqueue.cpp. collect returns false if no events are left.
  static Fd make_queue();
  bool watch(int fd, std::uintptr_t tag);
  void unwatch(int fd);
  bool collect(std::chrono::milliseconds limit, GoroutineList& woken);
  Scheduler& scheduler_;
  Fd queue_ = make_queue();
  Pipe break_ = make_pipe();
  std::mutex mutex_;  // guards the two below; its holder takes no other lock
  std::deque<PollDesc> all_;
  PollDesc* free_ = nullptr;
};

// A system call that is made again until it does not answer "would block".
struct PollOperation : Operation {
  PollOperation(PollDesc& its, Direction which) : desc(its), direction(which) {}
  bool attempt() noexcept final;
  bool commit(Goroutine& its) noexcept final { return desc.slots[direction].commit(its); }
  virtual Io call() noexcept = 0;
  PollDesc& desc;
  const Direction direction;
  bool entered = false;
  Io status = kTimedOut;
};
