#include "common/bench/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <deque>
#include <future>
#include <vector>

#include "common/socket/process.h"
#include "common/testing/clients.h"
#ifdef __linux__
#include <sys/prctl.h>
#endif

using std::chrono::nanoseconds;

namespace {

constexpr nanoseconds kDrain = 2s;  // how long the last answers are waited for

std::uint64_t to_ns(Clock::duration duration) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, nanoseconds(duration).count()));
}

nanoseconds cpu_of_this_thread() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
}

struct Schedule {
  Clock::time_point start;  // of the warm-up
  Clock::time_point begin;  // of what is measured
  Clock::time_point end;
  bool measures(Clock::time_point due) const { return due >= begin && due < end; }
};

// One thread of the load generator, and its connections: first those that send, then the
// slow ones, then the idle ones. One thread at a time calls its functions. Only `done` may
// be called meanwhile.
class Worker final : public Clients {
 public:
  Worker(const Address& server, const LoadPlan& plan, std::size_t number)
      : Clients(server, plan.seed), plan_(plan), number_(number) {}

  // Connects, and waits until each connection's first message has come back.
  void connect();
  // The load, and then the wait for what is still under way.
  void run(const Schedule& schedule);
  // Disconnects. Returns what was counted.
  LoadResult leave();

  std::uint64_t done() const { return done_.load(std::memory_order_relaxed); }
  std::size_t held() const { return quick_; }

 private:
  std::size_t chunk() override { return 64 * 1024; }
  void fill(const Connection& c, std::uint64_t offset, std::span<char> out) override;
  void came(Connection& c, std::size_t bytes) override;
  void wrong(Connection&, std::size_t, char, char) override { ++result_.mismatched_bytes; }
  void lost(Connection& c, const std::string& how) override;

  void send_due(Clock::time_point now);
  void queue(Connection& c, Clock::time_point now);
  void count_answer(Connection& c, std::uint64_t message, Clock::time_point now);
  void give_up(const Connection& c, Clock::time_point now);
  void give_up(Clock::time_point due, Clock::time_point now);
  void note_cpu(Clock::time_point now);

  Clock::time_point due_at(std::uint64_t n) const;
  Clock::time_point due_at(const Connection& c, std::uint64_t message) const;
  bool is_quick(const Connection& c) const { return c.number < plan_.clients; }
  bool is_idle(const Connection& c) const { return c.number >= plan_.clients + plan_.slow; }
  bool is_slow(const Connection& c) const { return !is_quick(c) && !is_idle(c); }
  bool in_closed_loop(const Connection& c) const {
    return is_slow(c) || (is_quick(c) && plan_.rate == 0);
  }

  const LoadPlan& plan_;
  const std::size_t number_;
  std::size_t quick_ = 0;  // connections that send and are not slow
  std::vector<Clock::time_point>
      sent_at_;  // closed loop: of each connection's last `depth` messages
  Schedule schedule_ = {};
  bool connecting_ = true;
  std::uint64_t next_due_ = 0;  // open loop: which of the thread's messages is next
  LoadResult result_;
  nanoseconds cpu_before_{-1};  // when measuring began; -1: it has not
  Clock::time_point cpu_since_;
  std::atomic<std::uint64_t> done_{0};  // connections, then messages
};

void Worker::connect() {
  connect_later(number_, plan_.threads, plan_.clients + plan_.slow + plan_.idle, plan_.size);
  drive(plan_.give_up);
  result_.unserved = unopened();
  for (const Connection& c : connections_) {
    if (c.socket && due(c) > 0) ++result_.unserved;
  }
  keep_served();
  for (const Connection& c : connections_) {
    if (is_quick(c)) ++quick_;
    if (!is_idle(c)) continue;
    ++result_.idle_held;
    waiter_.remove(c.socket, index_of(c));  // poll would look at each of them
  }
  result_.held = quick_;
  sent_at_.resize(connections_.size() * plan_.depth);
  connecting_ = false;
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
  auto now = Clock::now();
  for (;; now = Clock::now()) {
    note_cpu(now);
    if (plan_.rate != 0) send_due(now);
    const bool over = now >= schedule.end;
    if ((over && under_way_ == 0) || now >= schedule.end + kDrain) break;
    auto until = over ? schedule.end + kDrain : schedule.end;
    if (now < schedule.begin) until = schedule.begin;
    if (plan_.rate != 0 && !over) until = std::min(until, due_at(next_due_));
    handle_ready(until - now);
    done_.store(result_.total, std::memory_order_relaxed);
  }
  for (const Connection& c : connections_) {
    if (c.socket) give_up(c, now);
  }
  if (plan_.rate == 0) return;
  for (; due_at(next_due_) < schedule_.end; ++next_due_) {  // what was never sent
    if (schedule_.measures(due_at(next_due_)))
      result_.lateness.record(to_ns(now - due_at(next_due_)));
    give_up(due_at(next_due_), now);
  }
}

// The connection's bytes, without the '#' that means slow work. Slow ones send nothing else.
void Worker::fill(const Connection& c, std::uint64_t offset, std::span<char> out) {
  if (is_slow(c)) return std::fill(out.begin(), out.end(), '#');
  Clients::fill(c, offset, out);
  std::replace(out.begin(), out.end(), '#', '$');
}

// Open loop: when the thread's n-th message is due. The threads take turns.
Clock::time_point Worker::due_at(std::uint64_t n) const {
  return schedule_.start + nanoseconds((n * plan_.threads + number_) * 1'000'000'000 / plan_.rate);
}

// When a message of the connection was due. Message 0 was the one that proved it served.
// Open loop: the thread's messages go round its connections.
Clock::time_point Worker::due_at(const Connection& c, std::uint64_t message) const {
  if (in_closed_loop(c)) return sent_at_[index_of(c) * plan_.depth + message % plan_.depth];
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
  const std::uint64_t message = c.target / plan_.size;
  if (in_closed_loop(c)) sent_at_[index_of(c) * plan_.depth + message % plan_.depth] = now;
  expect(c, plan_.size);
}

void Worker::came(Connection& c, std::size_t bytes) {
  const auto now = Clock::now();
  for (auto message = (c.received - bytes) / plan_.size; message < c.received / plan_.size;
       ++message) {
    if (connecting_) {
      done_.fetch_add(1, std::memory_order_relaxed);
    } else {
      count_answer(c, message, now);
    }
  }
  if (c.sent < c.target) flush(c);
}

void Worker::count_answer(Connection& c, std::uint64_t message, Clock::time_point now) {
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

void Worker::lost(Connection& c, const std::string& how) {
  if (result_.first_problem.empty()) result_.first_problem = how;
  if (connecting_) {
    ++result_.refused;
  } else if (is_idle(c)) {
    ++result_.idle_lost;
  } else {
    ++result_.broken;
    give_up(c, Clock::now());
  }
}

// The connection's messages that are not answered by now never will be.
void Worker::give_up(const Connection& c, Clock::time_point now) {
  if (!is_quick(c)) return;
  for (auto message = c.received / plan_.size; message < c.target / plan_.size; ++message) {
    give_up(due_at(c, message), now);
  }
}

void Worker::give_up(Clock::time_point due, Clock::time_point now) {
  if (!schedule_.measures(due)) return;
  ++result_.unanswered;
  result_.latency.record(to_ns(now - due));
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
  for (Connection& c : connections_) {
    if (is_idle(c)) receive(c);  // has the server closed it, or sent anything?
  }
  // Where all ports are of one address, TIME_WAIT would keep them from the next run.
  close_all(!source_for(server_, 0));
  return result_;
}

// A thread for each worker, until all have returned. `meanwhile` is called again and
// again, and says how long to wait for the next time. What a worker throws is thrown here.
void in_parallel(std::deque<Worker>& workers, const std::function<void(Worker&)>& work,
                 const std::function<nanoseconds()>& meanwhile) {
  std::vector<std::future<void>> running;
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

void connect_all(std::deque<Worker>& workers, const LoadPlan& plan, std::size_t all) {
  in_parallel(
      workers, [](Worker& worker) { worker.connect(); },
      [&]() -> nanoseconds {
        plan.on_progress(fmt::format("{} of {} connected", sum_done(workers), all));
        return 100ms;
      });
}

// Loads the server, and tells the plan's caller of the moments and how far it is.
void run_all(std::deque<Worker>& workers, const LoadPlan& plan) {
  const auto start = Clock::now() + 1ms;
  const Schedule schedule = {start, start + plan.warmup, start + plan.warmup + plan.duration};
  Moment reached = Moment::connected;
  std::uint64_t warmup = 0;  // answers before `begin`
  const auto reach = [&](Moment moment) {
    if (moment <= reached) return;
    reached = moment;
    if (moment == Moment::begin) warmup = sum_done(workers);
    plan.on_moment(moment);
  };
  const auto text = [&]() -> std::string {
    if (reached == Moment::connected) return "warming up";
    if (reached == Moment::end) return "waiting for the last answers";
    return fmt::format("{:.1f} of {:.1f} s, {} answers",
                       std::chrono::duration<double>(Clock::now() - schedule.begin).count(),
                       std::chrono::duration<double>(plan.duration).count(),
                       sum_done(workers) - warmup);
  };
  in_parallel(
      workers, [&](Worker& worker) { worker.run(schedule); },
      [&]() -> nanoseconds {
        if (Clock::now() >= schedule.begin) reach(Moment::begin);
        if (Clock::now() >= schedule.end) reach(Moment::end);
        plan.on_progress(text());
        if (reached == Moment::end) return 10ms;
        const auto next = reached == Moment::begin ? schedule.end : schedule.begin;
        return std::clamp<nanoseconds>(next - Clock::now(), 0ns, 100ms);
      });
  for (const Moment moment : {Moment::begin, Moment::end, Moment::drained}) reach(moment);
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
  std::deque<Worker> workers;
  for (std::size_t i = 0; i < plan.threads; ++i) workers.emplace_back(server, plan, i);

  connect_all(workers, plan, all);
  plan.on_moment(Moment::connected);
  const bool some_are_held = std::any_of(workers.begin(), workers.end(),
                                         [](const Worker& worker) { return worker.held() > 0; });
  if (some_are_held) run_all(workers, plan);

  LoadResult sum;
  for (Worker& worker : workers) add(sum, worker.leave());
  return sum;
}
