// PollDesc: which goroutines wait for a descriptor; and the Netpoller, which wakes them.
// Go: pollDesc in runtime/netpoll.go, fdMutex in internal/poll/fd_mutex.go.
//
// For each direction a PollDesc holds one of four things:
//
//   nil      nobody waits, nothing has been reported
//   ready    something has been reported, and nobody has used it yet
//   wait     a goroutine is about to park; it can be stopped, and need not be woken
//   parked   a goroutine (its address)
//
//     nil   -> wait     block(): the system call said "not now"
//     ready -> nil      block(): something came meanwhile: call again
//     wait  -> parked   park(): once the goroutine is suspended
//     wait  -> nil      reset(): the waiter does not want to park after all
//     nil   -> ready    unblock(true): the poller
//     wait, parked -> nil   unblock(): the poller, a deadline, close; wakes what is parked
//
// No wake-up is lost, because each side first writes and then looks. A goroutine that is
// woken makes its system call again: what was reported before is there for the call, and
// what is reported from then on leaves `ready`. (In Go the poller always leaves `ready`, and
// each operation resets it first. Here a `ready` that is stale costs one call more: block()
// takes it, and the call is made again.)
// The waiter says `wait` and then looks whether the descriptor is closed or the deadline
// has passed; the other side first says so and then unblocks. And if somebody unblocks
// between `wait` and `parked`, park() fails, and the goroutine goes on.
//
// PollDescs are kept by the descriptor's number, and live as long as the Netpoller (Go
// takes them from a list of free ones). An event that comes late, for a number's former
// owner, is known by its sequence number.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "common/socket/fd.h"
#include "common/socket/socket.h"
#include "run_queue.h"
#include "task.h"
#include "timers.h"

enum class Direction : std::uint8_t { read, write };

class Netpoller;
class PollOperation;
class Scheduler;

class PollDesc final : private Timer {
 public:
  const Fd& fd() const { return fd_; }
  Netpoller& netpoller() const { return *netpoller_; }

  // One goroutine at a time reads, and one writes; others wait in line. The holder of a lock
  // is a user, and so is the owner until close: the last user closes the descriptor, so that
  // its number is not given to somebody else under a waiter's feet.
  bool lock(Direction direction);  // false: another has it, or it is closed
  bool wait_for_lock(PollOperation& operation, Goroutine& goroutine);  // false: it may be free now
  void unlock(Direction direction);
  void close();  // releases all that wait; their operations fail

  // The state machine above.
  void reset(Direction direction) { side(direction).state = kNil; }
  bool block(Direction direction);                       // true: something has come: call again
  bool park(Direction direction, Goroutine& goroutine);  // false: likewise
  Goroutine* unblock(Direction direction, bool ready);   // the one to be woken, if any

  // Why an operation cannot be done, whatever the descriptor holds.
  bool closing() const { return (use_ & kClosing) != 0; }
  bool expired(Direction direction) { return side(direction).deadline.load() == kExpired; }

  // Which of the connections that have had this number it is.
  std::uint32_t sequence() const { return sequence_; }

  // Operations that are under way at `when`, or begin after it, fail; if that is
  // in the past at once, even if there is something to read. (A write that waited is tried
  // once more.)
  void set_deadline(std::uint32_t sequence, Direction direction, Clock::time_point when);

  Underway underway(std::uint32_t sequence);  // nothing, if it is closed

  // Whether the last read has taken all: it got less than it asked for (epoll(7)). Then the
  // next need not be tried before there is news. Two cases spoil that, and from then on each
  // read is tried: after a hang-up there is no news, and before an urgent byte a read stops
  // (tcp(7)).
  bool drained() const { return drained_; }
  void set_drained(bool drained) {  // by the reader alone, who has the lock
    drained_.store(drained && trusted_, std::memory_order_relaxed);
  }
  bool watch_write();  // before a write waits; false: it cannot be told

 private:
  friend class Netpoller;

  // A deadline is put off with every message. The timer stays where it is; when it is
  // due it looks what the deadlines are by then, and goes back if they have time.
  Clock::time_point fire() override;

  static constexpr std::uintptr_t kNil = 0;
  static constexpr std::uintptr_t kReady = 1;
  static constexpr std::uintptr_t kWait = 2;

  static constexpr Clock::time_point kExpired = Clock::time_point::min();

  // use_, from its lowest bit: closing; the lock of reads is held, that of writes; somebody is
  // in line for that of reads, of writes; and above that the number of users. A lock that is
  // handed over takes its holder's place in the number with it.
  static constexpr std::uint32_t kClosing = 1;
  static constexpr std::uint32_t kUser = 32;
  static std::uint32_t held(Direction direction) { return 2u << static_cast<int>(direction); }
  static std::uint32_t wanted(Direction direction) { return 8u << static_cast<int>(direction); }

  struct Side {
    std::atomic<std::uintptr_t> state = kNil;
    std::atomic<Clock::time_point> deadline = kNever;
    Goroutine* line = nullptr;  // for the lock; first come, first served
  };
  Side& side(Direction direction) { return sides_[static_cast<std::size_t>(direction)]; }

  void open(Fd fd);
  void hand_over(Direction direction);
  void wake(Direction direction);
  void close_descriptor();

  Netpoller* netpoller_ = nullptr;
  Fd fd_;
  std::atomic<std::uint32_t> sequence_ = 0;
  std::atomic<std::uint32_t> use_ = kClosing;
  std::array<Side, 2> sides_;
  std::atomic<bool> drained_ = false;
  std::atomic<bool> trusted_ = true;  // a read that gets less than it asked for takes all
};

// A connection's own hold on its PollDesc, until it is closed. An operation that comes too
// late with it finds the sequence number changed, and not somebody else's connection.
class Hold {
 public:
  Hold() = default;
  explicit Hold(PollDesc* desc) : desc_(desc), sequence_(desc ? desc->sequence() : 0) {}
  Hold(Hold&& other) noexcept : desc_(other.desc_.exchange(nullptr)), sequence_(other.sequence_) {}
  Hold& operator=(Hold&&) = delete;
  ~Hold() { close(); }

  PollDesc* desc() const { return desc_; }  // none: it is closed
  std::uint32_t sequence() const { return sequence_; }

  void close() {
    if (PollDesc* desc = desc_.exchange(nullptr)) desc->close();
  }
  void set_deadline(Direction direction, Clock::time_point when) const {
    if (PollDesc* desc = desc_) desc->set_deadline(sequence_, direction, when);
  }

 private:
  std::atomic<PollDesc*> desc_ = nullptr;
  std::uint32_t sequence_ = 0;
};

// What the system says of a descriptor.
struct Readiness {
  bool readable;
  bool writable;
  bool leaves_more;  // behind what a read gets: an urgent byte, or the end
};

class Netpoller final {
 public:
  explicit Netpoller(Scheduler& scheduler);
  ~Netpoller();

  // Watches the descriptor, which must not block, from now on.
  // Its PollDesc owns it. Nothing: the system has no room for it, and it is closed.
  PollDesc* open(Fd fd);

  // Waits until somebody is ready, `until` has come, or break_poll; and returns the
  // goroutines that were parked for what has come. One worker at a time.
  GoroutineList poll(Clock::time_point until);

  // Whether the system promises that a read which got less than it asked for has taken all
  // there was, and that it will tell when there is more. (Not if there is a library between
  // us and the system, which may make reads shorter, as libfiu does.)
  static const bool kShortReadsEnd;

  // Ends a poll that waits, or the next one. Any thread may, and a signal handler.
  void break_poll();

  Scheduler& scheduler() { return scheduler_; }
  std::uint64_t breaks() const { return breaks_; }

 private:
  friend class PollDesc;

  static constexpr std::size_t kChunk = 256;  // PollDescs that are made at once

  // Of the system (netpoll_epoll.cpp, netpoll_kqueue.cpp).
  static Fd make_queue();
  bool watch(int fd, std::uint32_t sequence);
  bool watch_write(int fd, std::uint32_t sequence);
  void unwatch(int fd);
  void wait(std::chrono::milliseconds limit, GoroutineList& woken);

  PollDesc* desc(int fd);
  void report(int fd, std::uint32_t sequence, Readiness readiness, GoroutineList& woken);

  Scheduler& scheduler_;
  Fd queue_ = make_queue();
  Pipe break_ = make_pipe();
  std::atomic<bool> broken_ = false;  // a byte is in the pipe
  std::atomic<std::uint64_t> breaks_ = 0;
  // Of new chunks; and of PollDescs: of their lines, of a change of a deadline, and of closing.
  // (A deadline takes the lock of all timers besides, so one each would let no more through.)
  std::mutex mutex_;
  std::array<std::atomic<PollDesc*>, 4096> chunks_{};
};

// How an operation has ended.
enum class Status {
  ok,
  end,               // read: the peer has finished sending
  closed,            // close() was called
  timed_out,         // the deadline has passed
  peer_gone,         // reset, or unreachable
  out_of_resources,  // of descriptors or memory; accept: wait a while
};

// An operation on a descriptor: tried, and if it must be, parked and tried again. Go: the
// loops of internal/poll/fd_unix.go.
class PollOperation : public Operation {
 public:
  PollOperation(const Hold& hold, Direction direction)
      : desc_(hold.desc()), sequence_(hold.sequence()), direction_(direction) {}
  bool attempt() final;
  bool commit(Goroutine& goroutine) final;

 protected:
  // The system call, and its status. Io::would_block: not now. It does not throw.
  virtual Io call() = 0;

  PollDesc& desc() const { return *desc_; }

  Status status_ = Status::ok;

 private:
  friend class PollDesc;

  bool try_call();
  Status refusal() const;  // ok: none
  bool heard_late() const;
  bool done(Io io);

  PollDesc* desc_;
  std::uint32_t sequence_;
  Direction direction_;
  bool locked_ = false;
  bool parked_ = false;
};
