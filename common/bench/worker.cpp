#include "common/bench/worker.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <optional>
#include <system_error>
#include <utility>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/client.h"
#include "common/testing/swarm.h"
#ifdef __linux__
#include <sys/prctl.h>
#endif

using std::chrono::nanoseconds;

namespace {

constexpr std::size_t kOnTheirWay = 100;  // connections of a thread: no backlog overflows
constexpr nanoseconds kDrain = 2s;        // how long answers are waited for at the end

std::uint64_t to_ns(Clock::duration duration) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, nanoseconds(duration).count()));
}

nanoseconds cpu_of_this_thread() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
}

}  // namespace

Pattern::Pattern(std::uint64_t seed) : bytes_(kPeriod + kMostBytes, '\0') {
  fill_pattern(seed, 0, {bytes_.data(), kPeriod});
  std::replace(bytes_.begin(), bytes_.end(), '#', '$');
  for (std::size_t i = kPeriod; i < bytes_.size(); ++i) bytes_[i] = bytes_[i - kPeriod];
}

Worker::Worker(const Address& server, const LoadPlan& plan, const Pattern& pattern,
               std::size_t number)
    : server_(server), plan_(plan), pattern_(pattern), number_(number) {}

// What idle connections say first is all they say.
void Worker::connect() {
  const std::size_t all = plan_.clients + plan_.idle + plan_.slow;
  connections_.reserve(all / plan_.threads + 1);  // so that none of them moves
  std::size_t next = number_;
  auto last_move = Clock::now();
  for (;;) {
    while (next < all && under_way_ < kOnTheirWay) {
      start_connecting(next);
      next += plan_.threads;
    }
    if (under_way_ == 0 && next >= all) break;
    const std::uint64_t before = under_way_;
    for (const Ready& ready : waiter_.wait(100ms)) handle(ready);
    if (under_way_ != before) last_move = Clock::now();
    if (Clock::now() - last_move > plan_.give_up) break;
  }
  result_.unserved = under_way_;
  for (; next < all; next += plan_.threads) ++result_.unserved;  // behind those who wait
  finish_connecting();
}

void Worker::start_connecting(std::size_t number) {
  Connection c;
  c.number = number;
  try {
    const auto source = source_for(server_, number);
    c.socket = connect_to(server_, source ? &*source : nullptr);
  } catch (const std::system_error& error) {
    ++result_.refused;
    if (result_.first_problem.empty()) result_.first_problem = error.what();
    return;
  }
  c.wanted = plan_.size;
  c.blocked = true;  // until it is connected
  connections_.push_back(std::move(c));
  ++under_way_;
  waiter_.add(connections_.back().socket, connections_.size() - 1, true);
}

// Keeps the connections that are served; the idle ones out of the way.
void Worker::finish_connecting() {
  connecting_ = false;
  under_way_ = 0;
  for (Connection& c : connections_) {
    if (!c.socket || c.answered > 0) continue;
    waiter_.remove(c.socket, index_of(c));
    c.socket.reset();
  }
  std::vector<Connection> all;
  std::swap(all, connections_);
  connections_.reserve(all.size());
  for (Connection& c : all) {
    if (!c.socket) continue;
    if (is_idle(c)) {
      idle_.push_back(std::move(c.socket));
    } else {
      c.sent_at.resize(in_closed_loop(c) ? plan_.depth : 0);
      if (!is_slow(c)) ++quick_;
      connections_.push_back(std::move(c));
    }
  }
  // The places in connections_ are new.
  waiter_ = Waiter();
  for (const Connection& c : connections_) waiter_.add(c.socket, index_of(c), false);
  result_.held = quick_;
  result_.idle_held = idle_.size();
  done_ = 0;
}

void Worker::run(const Schedule& schedule) {
  if (quick_ == 0) return;  // none of this thread's connections is served
#ifdef __linux__
  ::prctl(PR_SET_TIMERSLACK, 1);  // else sleeps end up to 50 us late, to save wake-ups
#endif
  schedule_ = schedule;
  result_.seconds = std::chrono::duration<double>(schedule.end - schedule.begin).count();
  for (Connection& c : connections_) {
    if (!in_closed_loop(c)) continue;
    for (std::size_t i = 0; i < plan_.depth; ++i) queue(c, Clock::now());
    flush(c);
  }
  for (;;) {
    auto now = Clock::now();
    note_cpu(now);
    if (plan_.rate != 0) send_due(now);
    const bool over = now >= schedule.end;
    if ((over && under_way_ == 0) || now >= schedule.end + kDrain) break;
    auto until = over ? schedule.end + kDrain : schedule.end;
    if (now < schedule.begin) until = schedule.begin;
    if (plan_.rate != 0 && !over) {
      until = std::min(until, due_at(next_due_));
    }
    for (const Ready& ready : waiter_.wait(until - now)) handle(ready);
    done_.store(result_.total, std::memory_order_relaxed);
  }
  const auto now = Clock::now();
  for (const Connection& c : connections_) give_up(c, now);
  if (plan_.rate != 0) give_up_unsent(now);
}

// Open loop: when the thread's n-th message is due. The threads take turns.
Clock::time_point Worker::due_at(std::uint64_t n) const {
  return schedule_.start + nanoseconds((n * plan_.threads + number_) * 1'000'000'000 / plan_.rate);
}

// When a message of the connection was due; its first, number 0, was of connecting.
// Open loop: the thread's messages go round its connections.
Clock::time_point Worker::due_at(const Connection& c, std::uint64_t message) const {
  if (in_closed_loop(c)) return c.sent_at[message % plan_.depth];
  return due_at((message - 1) * quick_ + index_of(c));
}

// Sends what is due, but never so much that answers are not read in time.
void Worker::send_due(Clock::time_point now) {
  constexpr int kBurst = 64;
  for (int i = 0; i < kBurst; ++i, ++next_due_, now = Clock::now()) {
    const auto due = due_at(next_due_);
    if (due > now || due >= schedule_.end) return;
    Connection& c = connections_[next_due_ % quick_];
    if (schedule_.measures(due)) result_.lateness.record(to_ns(now - due));
    if (c.socket) {
      queue(c, now);
      flush(c);
    } else if (schedule_.measures(due)) {
      ++result_.unanswered;  // its connection is broken
    }
  }
}

void Worker::queue(Connection& c, Clock::time_point now) {
  if (in_closed_loop(c)) c.sent_at[messages(c) % plan_.depth] = now;
  c.wanted += plan_.size;
  ++under_way_;
}

void Worker::flush(Connection& c) {
  const bool was_blocked = c.blocked;
  c.blocked = false;
  while (c.sent < c.wanted && !c.blocked) {
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(c.wanted - c.sent, Pattern::kMostBytes));
    const IoResult out = write_some(c.socket, pattern(c, c.sent, size));
    if (out.status == Io::peer_gone) return lose(c, "reset by the server");
    c.blocked = out.status != Io::ok;  // no memory for it now counts as blocked
    c.sent += out.size;
  }
  if (c.blocked != was_blocked) waiter_.change(c.socket, index_of(c), c.blocked);
}

void Worker::handle(const Ready& ready) {
  Connection& c = connections_[ready.owner];
  if (c.socket && ready.write) {
    const int error = c.sent == 0 ? connect_error(c.socket) : 0;
    if (error != 0) return lose(c, error_text(error));
    flush(c);
  }
  if (c.socket && ready.read) receive(c);
}

void Worker::receive(Connection& c) {
  const IoResult in = read_some(c.socket, buffer_);
  if (in.status == Io::end) return lose(c, "closed by the server");
  if (in.status == Io::peer_gone) return lose(c, "reset by the server");
  if (in.status != Io::ok) return;
  compare(c, {buffer_.data(), in.size});
  c.received += in.size;
  if (c.received > c.sent) return lose(c, "more came back than was sent");
  const auto now = Clock::now();
  while (c.answered < c.received / plan_.size) count_answer(c, now);
  flush(c);
}

void Worker::compare(const Connection& c, std::string_view came) {
  const std::string_view due = pattern(c, c.received, came.size());
  if (came == due) return;
  for (std::size_t i = 0; i < came.size(); ++i) {
    if (came[i] != due[i]) ++result_.mismatched_bytes;
  }
}

void Worker::count_answer(Connection& c, Clock::time_point now) {
  const std::uint64_t message = c.answered++;
  --under_way_;
  if (connecting_) {
    done_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const auto due = due_at(c, message);
  if (is_slow(c)) {
    if (schedule_.measures(now)) ++result_.slow_answered;
  } else {
    ++result_.total;
    if (schedule_.measures(now)) ++result_.answered;
    if (schedule_.measures(due)) result_.latency.record(to_ns(now - due));
  }
  if (in_closed_loop(c) && now < schedule_.end) queue(c, now);
}

void Worker::lose(Connection& c, const char* how) {
  ++(connecting_ ? result_.refused : result_.broken);
  if (result_.first_problem.empty()) result_.first_problem = how;
  if (!connecting_) give_up(c, Clock::now());
  under_way_ -= messages(c) - c.answered;
  c.answered = messages(c);
  waiter_.remove(c.socket, index_of(c));
  c.socket.reset();
}

// What is not answered now never will be.
void Worker::give_up(const Connection& c, Clock::time_point now) {
  for (std::uint64_t message = c.answered; message < messages(c); ++message) {
    const auto due = due_at(c, message);
    if (!schedule_.measures(due) || is_slow(c)) continue;
    ++result_.unanswered;
    result_.latency.record(to_ns(now - due));
  }
}

// Open loop: what this thread never came to send.
void Worker::give_up_unsent(Clock::time_point now) {
  for (; due_at(next_due_) < schedule_.end; ++next_due_) {
    const auto due = due_at(next_due_);
    if (!schedule_.measures(due)) continue;
    ++result_.unanswered;
    result_.latency.record(to_ns(now - due));
    result_.lateness.record(to_ns(now - due));
  }
}

void Worker::note_cpu(Clock::time_point now) {
  if (cpu_before_ < 0ns && now >= schedule_.begin) {
    cpu_before_ = cpu_of_this_thread();
    cpu_since_ = now;
  } else if (now >= schedule_.end && result_.cpu_share == 0) {
    result_.cpu_share = std::chrono::duration<double>(cpu_of_this_thread() - cpu_before_) /
                        std::chrono::duration<double>(now - cpu_since_);
  }
}

LoadResult Worker::leave() {
  for (const Fd& fd : idle_) {
    char byte = 0;
    const ssize_t size = ::recv(fd.get(), &byte, 1, MSG_PEEK);
    if (size > 0) ++result_.mismatched_bytes;  // nobody asked it anything
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) ++result_.idle_lost;
  }
  if (!source_for(server_, 0)) {
    // All ports are of one address, and TIME_WAIT would keep them from the next run.
    for (const Connection& c : connections_) {
      if (c.socket) reset_on_close(c.socket);
    }
    for (const Fd& fd : idle_) reset_on_close(fd);
  }
  connections_.clear();
  idle_.clear();
  return result_;
}
