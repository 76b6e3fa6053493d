#include "common/bench/load.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <deque>
#include <future>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "common/socket/fd.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/swarm.h"
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/prctl.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;
using namespace std::chrono_literals;

constexpr std::size_t kMostBytes = 64 * 1024;  // of one write, and of one read
constexpr std::size_t kOnTheirWay = 100;       // connections of a thread: no backlog overflows
constexpr nanoseconds kDrain = 2s;             // how long answers are waited for at the end

std::uint64_t to_ns(Clock::duration duration) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, nanoseconds(duration).count()));
}

// What connection `number` sends: 65,521 random bytes, over and over, from a place of its
// own. They are made once, so that sending and comparing cost the generator no hashing.
// Slow connections send '#' and no others do.
class Pattern {
 public:
  explicit Pattern(std::uint64_t seed) : bytes_(kPeriod + kMostBytes, '\0') {
    fill_pattern(seed, 0, {bytes_.data(), kPeriod});
    std::replace(bytes_.begin(), bytes_.end(), '#', '$');
    for (std::size_t i = kPeriod; i < bytes_.size(); ++i) bytes_[i] = bytes_[i - kPeriod];
  }

  // At most kMostBytes of it, from `offset` on.
  std::string_view at(std::size_t number, std::uint64_t offset, std::size_t size) const {
    const std::size_t start = static_cast<std::size_t>((number * 7919 + offset) % kPeriod);
    return {bytes_.data() + start, size};
  }
  std::string_view of_slow(std::size_t size) const { return {hashes_.data(), size}; }

 private:
  static constexpr std::size_t kPeriod = 65'521;  // prime: every connection starts elsewhere
  std::string bytes_;
  std::string hashes_ = std::string(kMostBytes, '#');
};

struct Ready {
  std::size_t owner;
  bool read;
  bool write;
};

#ifdef __linux__
// Who is ready, by epoll, at a cost that is independent of how many are not.
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
  const std::vector<Ready>& wait(nanoseconds limit) {
    ready_.clear();
    int count = take(std::max(0ms, std::chrono::floor<std::chrono::milliseconds>(limit)));
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
  int take(std::chrono::milliseconds limit) {
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
// Who is ready, by poll: portable, and costly with thousands of connections.
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
  const std::vector<Ready>& wait(nanoseconds limit) {
    ready_.clear();
    const auto most = static_cast<int>(std::max<nanoseconds>(0ns, limit) / 1ms);
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

struct Connection {
  Fd socket;
  std::size_t number = 0;    // over all threads; it decides what is sent
  std::uint64_t wanted = 0;  // bytes: of the messages that were due so far
  std::uint64_t sent = 0;
  std::uint64_t received = 0;
  std::uint64_t answered = 0;              // messages
  std::vector<Clock::time_point> sent_at;  // closed loop: of the last `depth` messages
  bool blocked = false;                    // the socket takes no more for now
};

struct Schedule {
  Clock::time_point start;  // of the warm-up
  Clock::time_point begin;  // of what is measured
  Clock::time_point end;
  bool measures(Clock::time_point due) const { return due >= begin && due < end; }
};

// One thread's connections. Its functions are called by one thread at a time; only
// `done` may be asked meanwhile.
class Worker {
 public:
  Worker(const Address& server, const LoadPlan& plan, const Pattern& pattern, std::size_t number);

  // Connects, and has each connection's first message come back.
  void connect();
  // The load, and then the wait for what is still under way.
  void run(const Schedule& schedule);
  // Ends it; what was counted.
  LoadResult leave();

  std::uint64_t done() const { return done_.load(std::memory_order_relaxed); }
  std::size_t held() const { return quick_; }

 private:
  void start_connecting(std::size_t number);
  void finish_connecting();
  void handle(const Ready& ready);
  void send_due(Clock::time_point now);
  void queue(Connection& c, Clock::time_point now);
  void flush(Connection& c);
  void receive(Connection& c);
  void compare(const Connection& c, std::string_view came);
  void count_answer(Connection& c, Clock::time_point now);
  void lose(Connection& c, const char* how);
  void give_up(const Connection& c, Clock::time_point now);
  void give_up_unsent(Clock::time_point now);
  void note_cpu(Clock::time_point now);

  Clock::time_point due_at(std::uint64_t n) const;
  Clock::time_point due_at(const Connection& c, std::uint64_t message) const;
  std::uint64_t messages(const Connection& c) const { return c.wanted / plan_.size; }
  bool is_idle(const Connection& c) const {
    return c.number >= plan_.clients && c.number < plan_.clients + plan_.idle;
  }
  bool is_slow(const Connection& c) const { return c.number >= plan_.clients + plan_.idle; }
  bool in_closed_loop(const Connection& c) const { return plan_.rate == 0 || is_slow(c); }
  std::string_view pattern(const Connection& c, std::uint64_t offset, std::size_t size) const {
    return is_slow(c) ? pattern_.of_slow(size) : pattern_.at(c.number, offset, size);
  }
  std::size_t index_of(const Connection& c) const {
    return static_cast<std::size_t>(&c - connections_.data());
  }

  const Address& server_;
  const LoadPlan& plan_;
  const Pattern& pattern_;
  const std::size_t number_;

  Waiter waiter_;
  std::vector<Connection> connections_;  // those that send, the slow ones last
  std::size_t quick_ = 0;                // how many of them are not slow
  std::vector<Fd> idle_;
  Schedule schedule_ = {};
  bool connecting_ = true;
  std::uint64_t next_due_ = 0;   // open loop: which of the thread's messages is next
  std::uint64_t under_way_ = 0;  // messages due and not answered
  std::vector<char> buffer_ = std::vector<char>(kMostBytes);
  LoadResult result_;
  nanoseconds cpu_before_{-1};  // of this thread, when measuring began; negative: not yet
  Clock::time_point cpu_since_;
  std::atomic<std::uint64_t> done_{0};  // connections, then messages
};

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
        static_cast<std::size_t>(std::min<std::uint64_t>(c.wanted - c.sent, kMostBytes));
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

nanoseconds cpu_of_this_thread() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
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
  connections_.clear();
  idle_.clear();
  return result_;
}

// A thread for each worker, until all have returned. `meanwhile` is called again and
// again, and says how long to wait for the next time. What a worker throws is thrown here.
void in_parallel(std::deque<Worker>& workers, const std::function<void(Worker&)>& work,
                 const std::function<nanoseconds()>& meanwhile) {
  std::vector<std::future<void>> running;
  running.reserve(workers.size());
  for (Worker& worker : workers) {
    running.push_back(std::async(std::launch::async, [&work, &worker] { work(worker); }));
  }
  for (const std::future<void>& one : running) {
    while (one.wait_for(meanwhile()) != std::future_status::ready) {
    }
  }
  for (std::future<void>& one : running) one.get();
}

std::uint64_t sum_done(const std::deque<Worker>& workers) {
  std::uint64_t sum = 0;
  for (const Worker& worker : workers) sum += worker.done();
  return sum;
}

void connect_all(std::deque<Worker>& workers, const LoadPlan& plan) {
  const auto tell_progress = [&]() -> nanoseconds {
    if (plan.on_progress) {
      plan.on_progress(fmt::format("{} of {} connected", sum_done(workers),
                                   plan.clients + plan.idle + plan.slow));
    }
    return 100ms;
  };
  in_parallel(
      workers, [](Worker& worker) { worker.connect(); }, tell_progress);
}

// Tells the plan's caller of the moments of a run, and how far it is.
class Conductor {
 public:
  Conductor(const LoadPlan& plan, const Schedule& schedule, const std::deque<Worker>& workers)
      : plan_(plan), schedule_(schedule), workers_(workers) {}

  // Does what there is to be done now; how long there is nothing to do.
  nanoseconds step() {
    if (Clock::now() >= schedule_.begin) reach(Moment::begin);
    if (Clock::now() >= schedule_.end) reach(Moment::end);
    if (plan_.on_progress) plan_.on_progress(text());
    if (reached_ == Moment::end) return 10ms;
    const auto next = reached_ == Moment::begin ? schedule_.end : schedule_.begin;
    return std::clamp<nanoseconds>(next - Clock::now(), 0ns, 100ms);
  }

  void reach(Moment moment) {
    if (moment <= reached_) return;
    reached_ = moment;
    if (moment == Moment::begin) before_ = sum_done(workers_);
    if (plan_.on_moment) plan_.on_moment(moment);
  }

 private:
  std::string text() const {
    if (reached_ == Moment::connected) return "warming up";
    if (reached_ == Moment::end) return "waiting for the last answers";
    const std::chrono::duration<double> measured = Clock::now() - schedule_.begin;
    return fmt::format("{:.1f} of {:.1f} s, {} answers", measured.count(),
                       std::chrono::duration<double>(plan_.duration).count(),
                       sum_done(workers_) - before_);
  }

  const LoadPlan& plan_;
  const Schedule& schedule_;
  const std::deque<Worker>& workers_;
  Moment reached_ = Moment::connected;
  std::uint64_t before_ = 0;  // answers of the warm-up
};

void run_all(std::deque<Worker>& workers, const LoadPlan& plan) {
  const auto start = Clock::now() + 1ms;
  const Schedule schedule = {start, start + plan.warmup, start + plan.warmup + plan.duration};
  Conductor conductor(plan, schedule, workers);
  in_parallel(
      workers, [&](Worker& worker) { worker.run(schedule); }, [&] { return conductor.step(); });
  for (const Moment moment : {Moment::begin, Moment::end, Moment::drained}) conductor.reach(moment);
}

void add(LoadResult& sum, const LoadResult& one) {
  sum.held += one.held;
  sum.idle_held += one.idle_held;
  sum.refused += one.refused;
  sum.unserved += one.unserved;
  sum.broken += one.broken;
  sum.idle_lost += one.idle_lost;
  if (sum.first_problem.empty()) sum.first_problem = one.first_problem;
  sum.total += one.total;
  sum.answered += one.answered;
  sum.unanswered += one.unanswered;
  sum.slow_answered += one.slow_answered;
  sum.mismatched_bytes += one.mismatched_bytes;
  sum.seconds = std::max(sum.seconds, one.seconds);
  sum.latency.add(one.latency);
  sum.lateness.add(one.lateness);
  sum.cpu_share = std::max(sum.cpu_share, one.cpu_share);
}

}  // namespace

double LoadResult::requests_per_second() const {
  return seconds > 0 ? static_cast<double>(answered) / seconds : 0;
}

std::string LoadResult::bottleneck() const {
  constexpr double kBusy = 0.9;
  constexpr std::uint64_t kLate = 1'000'000;  // ns
  // Where it was late by a small part of the latency, it did not decide that.
  const std::uint64_t late = lateness.quantile(0.99);
  if (late > kLate && late > latency.quantile(0.99) / 4) {
    return fmt::format(
        "it fell behind its schedule: half of the messages left more than {:.1f} ms after they "
        "were due, 1 % more than {:.1f} ms",
        static_cast<double>(lateness.quantile(0.5)) / 1e6, static_cast<double>(late) / 1e6);
  }
  if (cpu_share >= kBusy) {
    return fmt::format("its busiest thread used {:.0f} % of a core, so the server may do more",
                       100 * cpu_share);
  }
  return {};
}

LoadResult run_load(const Address& server, const LoadPlan& plan) {
  ignore_sigpipe();
  const std::size_t all = plan.clients + plan.idle + plan.slow;
  const std::size_t need = all + 50;  // for the program itself
  if (const std::size_t limit = raise_descriptor_limit(); limit < need) {
    throw StartupError(
        fmt::format("{} connections need {} descriptors, and the limit is {}", all, need, limit));
  }
  const Pattern pattern(plan.seed);
  std::deque<Worker> workers;
  for (std::size_t i = 0; i < plan.threads; ++i) workers.emplace_back(server, plan, pattern, i);

  connect_all(workers, plan);
  if (plan.on_moment) plan.on_moment(Moment::connected);
  const bool some_are_held = std::any_of(workers.begin(), workers.end(),
                                         [](const Worker& worker) { return worker.held() > 0; });
  if (some_are_held) run_all(workers, plan);

  LoadResult sum;
  for (Worker& worker : workers) add(sum, worker.leave());
  return sum;
}
