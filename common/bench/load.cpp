#include "common/bench/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <deque>
#include <future>
#include <thread>
#include <vector>

#include "common/socket/process.h"
#include "common/testing/clients.h"
#ifdef __linux__
#include <sys/prctl.h>
#endif

using std::chrono::nanoseconds;
using Seconds = std::chrono::duration<double>;

namespace {

constexpr nanoseconds kDrain = 2s;  // the longest wait for the last answers

std::uint64_t to_ns(Clock::duration duration) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, nanoseconds(duration).count()));
}

nanoseconds cpu_of_this_thread() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
}

struct Schedule {
  Clock::time_point start;  // the warm-up begins
  Clock::time_point begin;  // the measured time begins
  Clock::time_point end;    // and ends
  bool measures(Clock::time_point due) const { return due >= begin && due < end; }
};

// One thread of the load generator, and its connections: first those that send, then the
// slow ones, then the idle ones. Connection `number` is driven by thread number % threads.
class Worker final : public Clients {
 public:
  Worker(const Address& server, const LoadPlan& plan, std::size_t number)
      : Clients(server, plan.seed), plan_(plan), number_(number) {}

  // Connects, and waits until each connection's first message has come back.
  void connect() {
    connect_later(number_, plan_.threads, plan_.clients + plan_.slow + plan_.idle, plan_.size);
    drive(plan_.give_up);
    result_.unserved = unopened() + keep_served() - result_.refused;
    for (const Connection& c : connections_) {
      if (is_quick(c)) ++quick_;
      if (!is_idle(c)) continue;
      ++result_.idle_held;
      waiter_.remove(c.socket, index_of(c));  // poll would check each of them
    }
    result_.held = quick_;
    sent_at_.resize(connections_.size() * plan_.depth);
    connecting_ = false;
  }

  // Sends by the schedule, then waits for what is still under way.
  void run(const Schedule& schedule) {
    if (quick_ == 0) return;  // no connection of this thread is served
#ifdef __linux__
    ::prctl(PR_SET_TIMERSLACK, 1);  // otherwise a sleep may end 50 us late, to save wake-ups
#endif
    schedule_ = schedule;
    result_.seconds = Seconds(schedule.end - schedule.begin).count();
    for (Connection& c : connections_) {
      if (!in_closed_loop(c)) continue;
      for (std::size_t i = 0; i < plan_.depth; ++i) queue(c, Clock::now());
      flush(c);
    }
    const auto cpu_before = cpu_of_this_thread();
    auto now = Clock::now();
    for (;; now = Clock::now()) {
      if (plan_.rate != 0) send_due(now);
      const bool over = now >= schedule.end;
      if (over && result_.cpu_share == 0) {
        result_.cpu_share = Seconds(cpu_of_this_thread() - cpu_before) / (now - schedule.start);
      }
      if ((over && under_way_ == 0) || now >= schedule.end + kDrain) break;
      auto until = over ? schedule.end + kDrain : schedule.end;
      if (now < schedule.begin) until = schedule.begin;
      if (plan_.rate != 0 && !over) until = std::min(until, due_at(next_due_));
      handle_ready(until - now);
    }
    for (const Connection& c : connections_) {
      if (c.socket) give_up(c, now);
    }
    if (plan_.rate == 0) return;
    for (auto due = due_at(next_due_); due < schedule.end; due = due_at(++next_due_)) {
      if (schedule.measures(due)) result_.lateness.record(to_ns(now - due));  // never sent
      give_up(due, now);
    }
  }

  // Disconnects. Returns what was counted.
  LoadResult leave() {
    for (Connection& c : connections_) {
      if (is_idle(c)) receive(c);  // has the server closed it, or sent anything?
    }
    // With one source address, TIME_WAIT would leave the next run too few ports.
    close_all(!source_for(server_, 0));
    return result_;
  }

  std::size_t held() const { return quick_; }

 private:
  bool is_quick(const Connection& c) const { return c.number < plan_.clients; }
  bool is_idle(const Connection& c) const { return c.number >= plan_.clients + plan_.slow; }
  bool is_slow(const Connection& c) const { return !is_quick(c) && !is_idle(c); }
  bool in_closed_loop(const Connection& c) const {
    return is_slow(c) || (is_quick(c) && plan_.rate == 0);
  }

  std::size_t chunk() override { return 64 * 1024; }

  // '#' means slow work. Slow connections send nothing else; the others never send it.
  void fill(const Connection& c, std::uint64_t offset, std::span<char> out) override {
    if (is_slow(c)) return std::fill(out.begin(), out.end(), '#');
    Clients::fill(c, offset, out);
    std::replace(out.begin(), out.end(), '#', '$');
  }

  // Open loop: when the thread's n-th message is due. The threads take turns.
  Clock::time_point due_at(std::uint64_t n) const {
    return schedule_.start +
           nanoseconds((n * plan_.threads + number_) * 1'000'000'000 / plan_.rate);
  }

  // Closed loop: when the connection's message was sent.
  Clock::time_point& sent_at(const Connection& c, std::uint64_t message) {
    return sent_at_[index_of(c) * plan_.depth + message % plan_.depth];
  }

  // When a message of the connection was due. Message 0 was sent while connecting. Open
  // loop: the thread's connections take turns.
  Clock::time_point due_at(const Connection& c, std::uint64_t message) {
    if (in_closed_loop(c)) return sent_at(c, message);
    return due_at((message - 1) * quick_ + index_of(c));
  }

  // Sends what is due, but at most kBurst messages, so that answers are read in time.
  void send_due(Clock::time_point now) {
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
        ++result_.unanswered;  // the connection is broken
      }
    }
  }

  void queue(Connection& c, Clock::time_point now) {
    if (in_closed_loop(c)) sent_at(c, c.target / plan_.size) = now;
    expect(c, plan_.size);
  }

  void came(Connection& c, std::size_t bytes) override {
    if (connecting_) return;
    const auto now = Clock::now();
    auto message = (c.received - bytes) / plan_.size;
    for (; message < c.received / plan_.size; ++message) count_answer(c, message, now);
    if (c.sent < c.target) flush(c);
  }

  void count_answer(Connection& c, std::uint64_t message, Clock::time_point now) {
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

  void wrong(Connection&, std::size_t, char, char) override { ++result_.mismatched_bytes; }

  void lost(Connection& c, const std::string& how) override {
    if (result_.first_problem.empty()) result_.first_problem = how;
    ++(connecting_ ? result_.refused : is_idle(c) ? result_.idle_lost : result_.broken);
    if (!connecting_) give_up(c, Clock::now());
  }

  // Counts the connection's messages that have no answer yet as unanswered.
  void give_up(const Connection& c, Clock::time_point now) {
    if (!is_quick(c)) return;
    auto message = c.received / plan_.size;
    for (; message < c.target / plan_.size; ++message) give_up(due_at(c, message), now);
  }

  void give_up(Clock::time_point due, Clock::time_point now) {
    if (!schedule_.measures(due)) return;
    ++result_.unanswered;
    result_.latency.record(to_ns(now - due));
  }

  const LoadPlan& plan_;
  const std::size_t number_;
  std::size_t quick_ = 0;                   // connections that send and are not slow
  std::vector<Clock::time_point> sent_at_;  // of each connection's last `depth` messages
  Schedule schedule_ = {};
  bool connecting_ = true;
  std::uint64_t next_due_ = 0;  // open loop: which of the thread's messages is next
  LoadResult result_;
};

// A thread for each worker, and `meanwhile` on this one. What a worker throws is thrown here.
void in_parallel(std::deque<Worker>& workers, const std::function<void(Worker&)>& work,
                 const std::function<void()>& meanwhile) {
  std::vector<std::future<void>> running;
  running.reserve(workers.size());
  for (Worker& worker : workers) {
    running.push_back(std::async(std::launch::async, [&work, &worker] { work(worker); }));
  }
  meanwhile();
  for (std::future<void>& one : running) one.get();
}

void wait_and_tell(const LoadPlan& plan, Clock::time_point until, const char* what) {
  for (auto now = Clock::now(); now < until; now = Clock::now()) {
    plan.on_progress(fmt::format("{}, {:.1f} s to go", what, Seconds(until - now).count()));
    std::this_thread::sleep_until(std::min(until, now + 100ms));
  }
}

void run_all(std::deque<Worker>& workers, const LoadPlan& plan) {
  const auto start = Clock::now() + 1ms;
  const Schedule schedule = {start, start + plan.warmup, start + plan.warmup + plan.duration};
  const auto conduct = [&] {
    wait_and_tell(plan, schedule.begin, "warming up");
    plan.on_moment(Moment::begin);
    wait_and_tell(plan, schedule.end, "measuring");
    plan.on_moment(Moment::end);
    plan.on_progress("waiting for the last answers");
  };
  in_parallel(
      workers, [&](Worker& worker) { worker.run(schedule); }, conduct);
  plan.on_moment(Moment::drained);
}

void add(LoadResult& sum, const LoadResult& one) {
  using R = LoadResult;
  for (const auto count :
       {&R::held, &R::idle_held, &R::refused, &R::unserved, &R::broken, &R::idle_lost}) {
    sum.*count += one.*count;
  }
  for (const auto count :
       {&R::total, &R::answered, &R::unanswered, &R::slow_answered, &R::mismatched_bytes}) {
    sum.*count += one.*count;
  }
  if (sum.first_problem.empty()) sum.first_problem = one.first_problem;
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
  // Lateness that is small beside the latency does not matter.
  const std::uint64_t late = lateness.quantile(0.99);
  if (late > kLate && late > latency.quantile(0.99) / 4) {
    return fmt::format(
        "it fell behind its schedule: half of the messages left more than {:.1f} ms late, 1 % more "
        "than {:.1f} ms late",
        static_cast<double>(lateness.quantile(0.5)) / 1e6, static_cast<double>(late) / 1e6);
  }
  if (cpu_share >= kBusy) {
    return fmt::format("its busiest thread used {:.0f} % of a core, so the server may be faster",
                       100 * cpu_share);
  }
  return {};
}

LoadResult run_load(const Address& server, const LoadPlan& plan) {
  ignore_sigpipe();
  const std::size_t all = plan.clients + plan.idle + plan.slow;
  const std::size_t need = all + 50;  // this program needs some itself
  if (const std::size_t limit = raise_descriptor_limit(); limit < need) {
    throw StartupError(
        fmt::format("{} connections need {} descriptors, and the limit is {}", all, need, limit));
  }
  std::deque<Worker> workers;
  for (std::size_t i = 0; i < plan.threads; ++i) workers.emplace_back(server, plan, i);

  in_parallel(
      workers, [](Worker& worker) { worker.connect(); },
      [&] { plan.on_progress(fmt::format("connecting {}", all)); });
  plan.on_moment(Moment::connected);
  const auto holds_some = [](const Worker& worker) { return worker.held() > 0; };
  if (std::any_of(workers.begin(), workers.end(), holds_some)) run_all(workers, plan);

  LoadResult sum;
  for (Worker& worker : workers) add(sum, worker.leave());
  return sum;
}
