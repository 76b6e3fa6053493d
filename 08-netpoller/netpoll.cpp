#include "netpoll.h"

#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <system_error>

#include "common/socket/process.h"
#include "scheduler.h"

constexpr std::uint8_t kSequenceBits = alignof(PollDesc) - 1;

// ---- Users of a descriptor. Go: fdMutex, pollCache.

PollDesc* Netpoller::open(Fd fd) {
  std::unique_lock lock(mutex_);
  PollDesc& desc = free_ ? *std::exchange(free_, free_->next_free_) : all_.emplace_back(scheduler_);
  lock.unlock();
  desc.fd_ = std::move(fd);
  for (const Direction direction : {kRead, kWrite}) {
    desc.slots[direction].reset();
    desc.deadlines_[direction] = kNever;
  }
  desc.drained = desc.more = false;
  desc.use_ = PollDesc::kOwner;
  if (watch(desc.fd_.get(), desc.tag())) return &desc;
  const std::system_error problem(errno, std::system_category(), "cannot watch a descriptor");
  desc.close();
  desc.leave(PollDesc::kOwner);
  throw problem;  // NOLINT(misc-throw-by-value-catch-by-reference): errno had to be kept
}

bool PollDesc::enter(User user) {
  std::uint8_t use = use_;
  do {
    if ((use & kClosing) != 0) return false;
    if ((use & user) != 0) fatal("a descriptor has one reader and one writer at a time");
  } while (!use_.compare_exchange_weak(use, use | user));
  return true;
}

void PollDesc::leave(User user) {
  if (use_.fetch_sub(user) != (user | kClosing)) return;
  Netpoller& netpoller = scheduler_.netpoller();
  netpoller.unwatch(fd_.get());
  fd_.reset();
  sequence_ = (sequence_ + 1) & kSequenceBits;
  const std::lock_guard lock(netpoller.mutex_);
  next_free_ = std::exchange(netpoller.free_, this);
}

// It is closed before what waits is woken.
void PollDesc::close() {
  use_ |= kClosing;
  for (const Direction direction : {kRead, kWrite}) wake(direction);
}

void PollDesc::wake(Direction direction) {
  if (Goroutine* parked = slots[direction].interrupt()) scheduler_.make_ready(*parked);
}

// ---- Deadlines and shutdown. Go: runtime_pollSetDeadline, netpolldeadlineimpl.

void PollDesc::set_deadline(Direction direction, Clock::time_point at) noexcept {
  if (at == kNever || at > Clock::now()) {
    deadlines_[direction] = at;
    if (scheduler_.add_timer(*this, at)) return;
  }
  deadlines_[direction] = kPast;
  wake(direction);
}

// The deadlines may have been put off since. A thread that changes one now adds the timer.
void PollDesc::fire() noexcept {
  for (const Direction direction : {kRead, kWrite}) {
    auto at = deadlines_[direction].load();
    if (at > Clock::now() && scheduler_.add_timer(*this, at)) continue;
    if (deadlines_[direction].compare_exchange_strong(at, kPast)) wake(direction);
  }
}

void Netpoller::limit_reads(Clock::time_point at) {
  for (std::size_t i = 0;; ++i) {
    std::unique_lock lock(mutex_);
    if (i == all_.size()) return;
    PollDesc& desc = all_[i];
    lock.unlock();
    if (!desc.enter(PollDesc::kVisitor)) continue;
    if (desc.deadlines_[kRead].load() > at || underway(desc.fd()).out) desc.set_deadline(kRead, at);
    desc.leave(PollDesc::kVisitor);
  }
}

// ---- Operations. Go: the loops of internal/poll/fd_unix.go.

bool PollOperation::attempt() noexcept {
  const auto user = direction == kRead ? PollDesc::kReader : PollDesc::kWriter;
  const bool first = !std::exchange(entered, true);
  if (first && !desc.enter(user)) {
    status = kClosed;
    return true;
  }
  const auto done = [this] {
    status = desc.closed() ? kClosed : call();
    return status != Io::would_block;
  };
  const auto gives_up = [this] { return desc.closed() || desc.expired(direction); };
  if (!first || !desc.expired(direction)) {
    if (!call_or_prepare(desc.slots[direction], done, gives_up)) return false;
    if (status == Io::would_block) (void)done();  // the last call
  }
  desc.leave(user);
  return true;
}

// ---- The poller. Go: netpoll, netpollready, netpollBreak.

Netpoller::Netpoller(Scheduler& scheduler) : scheduler_(scheduler) {
  if (!queue_ || !watch(break_.read_end.get(), 0))
    throw StartupError(fmt::format("no netpoller: {}", error_text(errno)));
}

// The limit is rounded up, so that no timer is early. Lists are read until one is not full:
// no event has to wait for a round of goroutines because of its place in the kernel's list.
GoroutineList Netpoller::poll(Clock::time_point until) {
  using namespace std::chrono;
  const auto left = ceil<milliseconds>(until - std::min(until, Clock::now()));
  auto limit = std::min<milliseconds>(left, hours(1));
  GoroutineList woken;
  for (int lists = 0; lists < 8 && collect(limit, woken); ++lists) limit = {};
  return woken;
}

void Netpoller::report(std::uintptr_t tag, bool readable, bool writable, bool more,
                       GoroutineList& woken) {
  if (tag == 0) {  // the pipe of break_poll
    for (std::array<char, 16> bytes; read_some(break_.read_end, bytes).status == Io::ok;) continue;
    return;
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr): it was an address
  PollDesc& desc = *reinterpret_cast<PollDesc*>(tag & ~std::uintptr_t{kSequenceBits});
  if (desc.tag() != tag) return;  // of a former owner
  if (more) desc.more = true;
  for (const Direction direction : {kRead, kWrite}) {
    if (!(direction == kRead ? readable : writable)) continue;
    if (Goroutine* parked = desc.slots[direction].report()) woken.push(*parked);
  }
}

// Repeats until the pipe has the byte, or is full: nothing else would end the poll.
void Netpoller::break_poll() {
  while (::write(break_.write_end.get(), "!", 1) < 0 && errno != EAGAIN) continue;
}
