#include "common/bench/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <future>
#include <vector>

#include "common/bench/worker.h"
#include "common/socket/process.h"

using std::chrono::nanoseconds;

namespace {

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
