#include "scheduler.h"

#include <algorithm>
#include <utility>

#include "common/socket/process.h"
#include "hooks.h"

namespace {

constexpr int kBudget = 2;               // operations in a row that may be done without waiting
constexpr std::uint32_t kFairness = 61;  // turns after which the global queue comes first, as in Go
constexpr std::uint32_t kUnpolled = 256;  // turns without a poll, after which there has to be one
constexpr std::size_t kManyWoken = 64;    // by one poll: then another worker helps
constexpr std::chrono::milliseconds kWatch{10};  // without a poll: then a sleeper takes over

thread_local Worker* current = nullptr;

}  // namespace

[[gnu::noinline]] Worker* this_worker() { return current; }

void go_on_at(std::coroutine_handle<> point) { this_worker()->goroutine->point = point; }

void go(Task task) { this_worker()->scheduler.go(std::move(task)); }

// A goroutine that can always go on would keep the worker to itself: after a few operations
// it goes to the end of the line.
bool Operation::await_ready() { return this_worker()->budget-- > 0 && attempt(); }

void Operation::await_suspend(std::coroutine_handle<> point) {
  Goroutine& goroutine = *this_worker()->goroutine;
  goroutine.point = point;
  goroutine.operation = this;
}

Scheduler::Scheduler(std::size_t workers, std::size_t blocking)
    : timers_([this] {
        if (polling_) netpoller_.break_poll();
      }),
      netpoller_(*this),
      pool_(blocking) {
  for (std::size_t i = 0; i < workers; ++i) workers_.push_back(std::make_unique<Worker>(*this));
  sleepers_.reserve(workers);  // going to sleep takes no memory
}

void Scheduler::run(Task main) {
  ++goroutines_;
  main_ = &main.release();
  std::vector<std::thread> threads;
  try {
    threads.reserve(workers_.size());
    for (std::size_t i = 1; i < workers_.size(); ++i) threads.push_back(start(*workers_[i]));
    ready(*main_);
    work(*workers_[0]);
  } catch (...) {
    main_error_ = std::current_exception();
    stop();
  }
  for (std::thread& thread : threads) thread.join();
  if (main_error_) std::rethrow_exception(main_error_);
}

std::thread Scheduler::start(Worker& worker) try {
  return std::thread([this, &worker] { work(worker); });
} catch (const std::exception& error) {
  throw StartupError(fmt::format("cannot start {} workers: {}", workers_.size(), error.what()));
}

void Scheduler::go(Task task) {
  ++goroutines_;
  ready(task.release());
}

void Scheduler::ready(GoroutineList list) {
  if (list.size() == 0) return;
  Worker* worker = this_worker();
  (worker && &worker->scheduler == this ? worker->queue : global_).push(list);
  wake_one();
}

// ---- Running. Go: execute, gogo, gopark.

void Scheduler::work(Worker& worker) {
  current = &worker;
  while (Goroutine* goroutine = find_runnable(worker)) {
    stop_spinning(worker);
    worker.busy.store(true, std::memory_order_relaxed);
    run(worker, *goroutine);
    worker.busy.store(false, std::memory_order_relaxed);
  }
  current = nullptr;
}

// Runs it until it waits. Once it is committed it may run elsewhere, and be gone. Without an
// operation it is new, or is to go on in another Task.
void Scheduler::run(Worker& worker, Goroutine& goroutine) {
  worker.goroutine = &goroutine;
  worker.budget = kBudget;
  for (;;) {
    if (!goroutine.operation || goroutine.operation->attempt()) {
      goroutine.operation = nullptr;
      goroutine.point.resume();
      if (!goroutine.point) return finish(goroutine);
      if (!goroutine.operation) continue;  // it has called another Task, or returned to one
      if (worker.budget < 0) return put_behind(goroutine);
    }
    HOOK(before_commit);
    if (goroutine.operation->commit(goroutine)) return;
  }
}

void Scheduler::finish(Goroutine& goroutine) {
  const bool last = &goroutine == main_;
  const auto frame = Task::Handle::from_address(goroutine.frame.address());
  const std::exception_ptr error = frame.promise().error;
  if (last) {
    main_error_ = error;
  } else if (error) {
    static OncePerSecond may_say;
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& problem) {
      if (may_say()) log_line("a goroutine has ended: {}", problem.what());
    } catch (...) {
      if (may_say()) log_line("a goroutine has ended: it threw something");
    }
  }
  frame.destroy();
  --goroutines_;
  if (last) stop();
}

// ---- Finding work. Go: findRunnable.

Goroutine* Scheduler::find_runnable(Worker& worker) {
  while (!stopping_) {
    if (++worker.turns % kFairness == 0) {
      timers_.fire_due();
      // What the poll finds goes behind what is there, so while the queue gets shorter it can
      // wait.
      if (worker.turns - worker.polled > kUnpolled) poll_now(worker);
      if (Goroutine* goroutine = global_.pop()) return goroutine;
    }
    if (Goroutine* goroutine = worker.queue.pop()) return goroutine;
    // Goroutines that the network has made ready go first. Before the timers: a deadline may
    // have passed only because nobody looked. And before the global queue, which holds
    // goroutines that have had a turn, and those that were made ready by a thread that is no
    // worker: they would keep the network out. (In Go a thread of its own sees to that,
    // sysmon: there a goroutine may run for long.)
    if ((timers_.due() || global_.size() > 0) && poll_now(worker)) continue;
    timers_.fire_due();
    if (Goroutine* goroutine = global_.pop()) return goroutine;
    if (Goroutine* goroutine = steal(worker)) return goroutine;
    idle(worker);
  }
  return nullptr;
}

Goroutine* Scheduler::steal(Worker& worker) {
  if (!worker.spinning) {
    worker.spinning = true;
    ++spinning_;
  }
  for (std::size_t i = 0; i < workers_.size(); ++i) {  // a different one first each time
    GoroutineList half = workers_[(worker.turns + i) % workers_.size()]->queue.take_half();
    Goroutine* first = half.pop();
    if (!first) continue;
    ++steals_;
    worker.queue.push(half);
    return first;
  }
  return nullptr;
}

// A worker that has found work, and was the last to look for it, has another one look:
// there may be more.
void Scheduler::stop_spinning(Worker& worker) {
  if (!std::exchange(worker.spinning, false)) return;
  if (--spinning_ == 0 && has_work()) wake_one();
}

bool Scheduler::has_work() const {
  return global_.size() > 0 ||
         std::any_of(workers_.begin(), workers_.end(),
                     [](const auto& worker) { return worker->queue.size() > 0; });
}

// ---- Polling, sleeping and waking.

// Polls without waiting, unless another worker is polling. Returns whether any was ready.
bool Scheduler::poll_now(Worker& worker) {
  return !polling_.exchange(true) && poll(worker, Clock::time_point::min());
}

// Called by the worker that has set polling_.
bool Scheduler::poll(Worker& worker, Clock::time_point until) {
  ++polls_;
  worker.polled = worker.turns;
  const GoroutineList woken = netpoller_.poll(until);
  worker.queue.push(woken);
  polling_ = false;
  if (unwatched_) {
    const std::lock_guard lock(mutex_);
    watch();
  }
  if (woken.size() > kManyWoken) wake_one();
  return woken.size() > 0;
}

// First the worker says that it is idle, then it leaves the search, and then it looks once
// more. A thread that has new work first puts it into a queue, and then looks for idle and
// for searching workers. So one of the two sees the other.
void Scheduler::idle(Worker& worker) {
  HOOK(before_idle);
  bool polls = false;
  {
    const std::lock_guard lock(mutex_);
    worker.spinning = false;
    polls = !polling_.exchange(true);
    if (!polls) sleepers_.push_back(&worker);
    ++idle_;
  }
  --spinning_;
  const bool stay = !has_work() && !stopping_;
  if (polls) {
    HOOK(before_block);
    poll(worker, stay ? timers_.next() : Clock::time_point::min());
    --idle_;
  } else {
    sleep(worker, stay);
  }
}

// The worker that has slept longest keeps watch. If nobody has polled for a while, all others
// are busy with goroutines that take their time, and it takes over. If one has been in the
// poll since it looked last, it need not look until that one comes out. (Then, or when a
// sleeper leaves, watch() has one look again.)
// `stay`: false if there was work after all.
void Scheduler::sleep(Worker& worker, bool stay) {
  HOOK(before_sleep);
  std::unique_lock lock(mutex_);
  std::uint64_t polls = polls_;
  while (stay && !worker.spinning && !stopping_) {
    if (sleepers_.front() != &worker || unwatched_) {
      worker.wake.wait(lock);
    } else if (worker.wake.wait_for(lock, kWatch) == std::cv_status::timeout) {
      const std::uint64_t before = std::exchange(polls, polls_);
      if (polls == before && !worker.spinning) {
        unwatched_ = true;
        HOOK(after_unwatched);
      }
      stay = polling_ && !has_work();
    }
  }
  if (worker.spinning) return;  // wake_one has taken it off the list, and counted it
  std::erase(sleepers_, &worker);
  watch();
  --idle_;
}

// Has the first of the sleepers keep watch again.
void Scheduler::watch() {
  unwatched_ = false;
  if (!sleepers_.empty()) sleepers_.front()->wake.notify_one();
}

// Has a worker look for work, unless one does.
void Scheduler::wake_one() {
  if (idle_ == 0 || spinning_ > 0) return;
  const std::lock_guard lock(mutex_);
  if (sleepers_.empty()) {
    if (polling_) netpoller_.break_poll();
    return;
  }
  Worker& worker = *sleepers_.back();
  sleepers_.pop_back();
  worker.spinning = true;
  ++spinning_;
  --idle_;
  worker.wake.notify_one();
}

// Behind all others. If it is not the only one there, another worker may have it.
void Scheduler::put_behind(Goroutine& goroutine) {
  global_.push(goroutine);
  if (global_.size() > 1) wake_one();
}

void Scheduler::stop() {
  stopping_ = true;
  const std::lock_guard lock(mutex_);
  for (Worker* worker : sleepers_) worker->wake.notify_one();
  netpoller_.break_poll();
}
