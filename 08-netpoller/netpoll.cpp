#include "netpoll.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "common/socket/process.h"
#include "hooks.h"
#include "scheduler.h"

using std::chrono::milliseconds;

// ---- The lock. Go: fdMutex.

bool PollDesc::lock(Direction direction) {
  std::uint32_t use = use_;
  do {
    if (use & (kClosing | held(direction))) return false;
  } while (!use_.compare_exchange_weak(use, (use | held(direction)) + kUser));
  return true;
}

// Joins the line, and says so, unless the lock was given back meanwhile: then nobody would
// look into the line.
bool PollDesc::wait_for_lock(PollOperation& operation, Goroutine& goroutine) {
  const std::lock_guard guard(netpoller_->mutex_);  // it cannot be closed meanwhile
  if (sequence_ != operation.sequence_) return false;
  std::uint32_t use = use_;
  do {
    if ((use & kClosing) || !(use & held(operation.direction_))) return false;
  } while (!use_.compare_exchange_weak(use, use | wanted(operation.direction_)));
  operation.locked_ = true;  // once it goes on: only hand_over wakes it
  Goroutine** end = &side(operation.direction_).line;
  while (*end) end = &(*end)->next;
  *end = &goroutine;
  goroutine.next = nullptr;
  return true;
}

void PollDesc::unlock(Direction direction) {
  HOOK(before_unlock);
  std::uint32_t use = use_;
  std::uint32_t left = 0;
  do {
    if ((use & wanted(direction)) != 0) return hand_over(direction);
    left = (use & ~held(direction)) - kUser;
  } while (!use_.compare_exchange_weak(use, left));
  if (left < kUser) close_descriptor();
}

// To the first in line: it stays held, and its user is another one now. After a close
// too: that one finds out, and hands it over to the next.
void PollDesc::hand_over(Direction direction) {
  Goroutine* first = nullptr;
  {
    const std::lock_guard guard(netpoller_->mutex_);
    Goroutine*& line = side(direction).line;
    first = std::exchange(line, line->next);
    if (!line) use_ &= ~wanted(direction);
  }
  netpoller_->scheduler().ready(*first);
}

void PollDesc::close() {
  {
    const std::lock_guard guard(netpoller_->mutex_);  // a deadline comes before, or not at all
    if ((use_.fetch_or(kClosing) & kClosing) != 0) return;
  }
  // It is published; now wake those that would not look otherwise. Those in line for a lock
  // have it handed over when its holder leaves.
  netpoller_->scheduler().timers().remove(*this);
  for (const Direction direction : {Direction::read, Direction::write}) wake(direction);
  if (use_.fetch_sub(kUser) < 2 * kUser) close_descriptor();  // it was the last
}

// By the last user. After that the number, and this PollDesc, may be somebody else's.
void PollDesc::close_descriptor() {
  const Fd last = std::move(fd_);
  netpoller_->unwatch(last.get());
  ++sequence_;
}

// It cannot be closed meanwhile: that takes the mutex too.
Underway PollDesc::underway(std::uint32_t sequence) {
  const std::lock_guard guard(netpoller_->mutex_);
  return closing() || sequence_ != sequence ? Underway{} : ::underway(fd_);
}

// ---- The state machine. Go: netpollblock, netpollblockcommit, netpollunblock.

bool PollDesc::block(Direction direction) {
  for (;;) {
    std::uintptr_t expected = side(direction).state;
    const std::uintptr_t next = expected == kReady ? kNil : kWait;
    if (side(direction).state.compare_exchange_strong(expected, next)) return next == kNil;
  }
}

bool PollDesc::park(Direction direction, Goroutine& goroutine) {
  std::uintptr_t expected = kWait;
  return side(direction).state.compare_exchange_strong(
      expected, reinterpret_cast<std::uintptr_t>(&goroutine));
}

Goroutine* PollDesc::unblock(Direction direction, bool ready) {
  std::uintptr_t old = side(direction).state;
  for (;;) {
    if (old == kReady || (old == kNil && !ready)) return nullptr;
    if (side(direction).state.compare_exchange_weak(old, old == kNil ? kReady : kNil)) {
      // NOLINTNEXTLINE(performance-no-int-to-ptr): it was put there as a number
      return old > kWait ? reinterpret_cast<Goroutine*>(old) : nullptr;
    }
  }
}

void PollDesc::wake(Direction direction) {
  if (Goroutine* goroutine = unblock(direction, false)) netpoller_->scheduler().ready(*goroutine);
}

bool PollDesc::watch_write() { return netpoller_->watch_write(fd_.get(), sequence_); }

// ---- Deadlines. Go: runtime_pollSetDeadline, netpolldeadlineimpl.

void PollDesc::set_deadline(std::uint32_t sequence, Direction direction, Clock::time_point when) {
  const std::lock_guard guard(netpoller_->mutex_);
  if (closing() || sequence_ != sequence) return;
  HOOK(before_deadline);
  if (when <= Clock::now()) {
    side(direction).deadline = kExpired;
    wake(direction);
  } else {
    side(direction).deadline = when;
    netpoller_->scheduler().timers().add(*this, when);
  }
}

Clock::time_point PollDesc::fire() {
  const std::lock_guard guard(netpoller_->mutex_);
  if (closing()) return kNever;
  const auto now = Clock::now();
  auto next = kNever;
  for (const Direction direction : {Direction::read, Direction::write}) {
    const auto when = side(direction).deadline.load();
    if (when > now) {
      next = std::min(next, when);
    } else if (when != kExpired) {
      side(direction).deadline = kExpired;
      wake(direction);
    }
  }
  return next;
}

// ---- Operations. Go: internal/poll/fd_unix.go.

bool PollOperation::attempt() {
  locked_ = locked_ || (desc_ && desc_->lock(direction_));
  if (!locked_) {
    status_ = Status::closed;
    return !desc_ || refusal() == Status::closed;  // if it is not, somebody else has the lock
  }
  if (!try_call()) return false;
  desc_->unlock(direction_);
  return true;
}

// Calls, says `wait`, and looks again. True: it is done, and status_ says how. False: it may
// park.
bool PollOperation::try_call() {
  const bool woken = std::exchange(parked_, false);
  bool skip = !woken && direction_ == Direction::read && desc_->drained();
  for (;;) {
    if (status_ = refusal(); status_ != Status::ok) {
      if (woken && heard_late() && done(call())) return true;
      break;
    }
    HOOK(before_call);
    if (!skip && done(call())) return true;
    HOOK(after_call);
    skip = false;
    if (desc_->block(direction_)) continue;
    HOOK(before_recheck);
    if (refusal() == Status::ok) return false;
    desc_->reset(direction_);
  }
  // An operation that was woken by news and by its deadline at once has used up the news:
  // the next read has to try.
  desc_->set_drained(false);
  return true;
}

// A peer that reads in time makes room, and the writer may hear of that after its deadline.
// (Bytes that come in time for a reader are left to the next read.)
bool PollOperation::heard_late() const {
  return status_ == Status::timed_out && direction_ == Direction::write;
}

bool PollOperation::done(Io io) {
  switch (io) {
    case Io::ok: status_ = Status::ok; break;
    case Io::would_block: return false;
    case Io::end: status_ = Status::end; break;
    case Io::peer_gone: status_ = Status::peer_gone; break;
    case Io::out_of_resources: status_ = Status::out_of_resources; break;
  }
  return true;
}

bool PollOperation::commit(Goroutine& goroutine) {
  if (!locked_) return desc_->wait_for_lock(*this, goroutine);
  parked_ = true;
  return desc_->park(direction_, goroutine);
}

Status PollOperation::refusal() const {
  if (desc_->closing() || desc_->sequence() != sequence_) return Status::closed;
  if (desc_->expired(direction_)) return Status::timed_out;
  return Status::ok;
}

// ---- The poller. Go: netpoll, netpollready, netpollBreak.

Netpoller::Netpoller(Scheduler& scheduler) : scheduler_(scheduler) {
  if (!queue_ || !watch(break_.read_end.get(), 0))
    throw StartupError(fmt::format("no netpoller: {}", error_text(errno)));
}

Netpoller::~Netpoller() {
  for (const auto& chunk : chunks_) delete[] chunk.load();
}

PollDesc* Netpoller::open(Fd fd) {
  const int number = fd.get();
  PollDesc* desc = this->desc(number);
  if (!desc) return nullptr;
  const std::uint32_t sequence = desc->sequence_;  // first: its last owner has written it last
  desc->open(std::move(fd));
  if (watch(number, sequence)) return desc;
  desc->close();
  return nullptr;
}

void PollDesc::open(Fd fd) {
  fd_ = std::move(fd);
  for (const Direction direction : {Direction::read, Direction::write}) {
    side(direction).state = kNil;
    side(direction).deadline = kNever;
  }
  drained_ = false;
  trusted_ = Netpoller::kShortReadsEnd;
  use_ = kUser;
}

PollDesc* Netpoller::desc(int fd) {
  const auto index = static_cast<std::size_t>(fd);
  if (index / kChunk >= chunks_.size()) return nullptr;
  std::atomic<PollDesc*>& chunk = chunks_[index / kChunk];
  if (!chunk) {
    const std::lock_guard lock(mutex_);
    if (!chunk) {
      auto* made = new (std::nothrow) PollDesc[kChunk];
      if (!made) return nullptr;
      for (std::size_t i = 0; i < kChunk; ++i) made[i].netpoller_ = this;
      chunk = made;
    }
  }
  return &chunk.load()[index % kChunk];
}

// A wait is rounded up, so that no timer is early; and has an end, as systems want it.
GoroutineList Netpoller::poll(Clock::time_point until) {
  const auto left = std::chrono::ceil<milliseconds>(until - std::min(until, Clock::now()));
  GoroutineList woken;
  wait(std::min<milliseconds>(left, std::chrono::hours(1)), woken);
  return woken;
}

// What the system has reported of a descriptor. A stale event is dropped.
void Netpoller::report(int fd, std::uint32_t sequence, Readiness readiness, GoroutineList& woken) {
  if (fd == break_.read_end.get()) {
    std::array<char, 16> bytes;
    while (read_some(break_.read_end, bytes).status == Io::ok) {
    }
    broken_ = false;
    return;
  }
  HOOK(before_report);
  PollDesc& reported = *desc(fd);
  if (reported.sequence_ != sequence) return;
  if (readiness.leaves_more) reported.trusted_ = false;
  if (readiness.readable) {
    if (Goroutine* goroutine = reported.unblock(Direction::read, true)) woken.push(*goroutine);
  }
  if (readiness.writable) {
    if (Goroutine* goroutine = reported.unblock(Direction::write, true)) woken.push(*goroutine);
  }
  HOOK(after_report);
}

// Tried until the pipe has the byte, or is full: nobody would make up for one that is lost.
void Netpoller::break_poll() {
  if (broken_.exchange(true)) return;
  ++breaks_;
  while (::write(break_.write_end.get(), "!", 1) < 0 && errno != EAGAIN) {
  }
}
