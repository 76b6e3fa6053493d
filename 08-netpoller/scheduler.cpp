#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "common/socket/process.h"

constexpr int kBudget = 2;  // operations in a turn that succeed without waiting

// A coroutine may continue on another thread after each co_await, so what this returned must
// not be kept. It is not inlined; and a compiler that saw, across files, that it only returns
// an address could still call it less often. It cannot see through the empty asm.
[[gnu::noinline]] Worker& this_worker() {
  static thread_local Worker worker;
  asm volatile("" ::: "memory");
  return worker;
}

void fatal(std::string_view bug) {
  log_line("bug: {}", bug);
  std::abort();
}

void go(Task<> task) {
  Scheduler* scheduler = this_worker().scheduler;
  if (!scheduler) fatal("go() is for goroutines; elsewhere there is Scheduler::go()");
  scheduler->go(std::move(task));
}

void continue_at(std::coroutine_handle<> point) { this_worker().goroutine->point = point; }

// A goroutine that never has to wait would keep its worker. So when the budget of its turn is
// spent, it is suspended although its operation is done.
bool Operation::await_ready() {
  const bool done = attempt();
  Worker& worker = this_worker();
  worker.goroutine->operation = done ? nullptr : this;
  return done && worker.budget-- > 0;
}

// ---- From start to stop.

Scheduler::Scheduler(std::size_t workers, std::size_t blocking, std::chrono::microseconds watch)
    : workers_(workers), watch_(watch), netpoller_(*this), pool_(blocking) {
  if (workers == 0) throw std::invalid_argument("a scheduler needs a worker");
}

void Scheduler::run(Task<> main) {
  main_ = &add(std::move(main));
  std::vector<std::thread> threads;
  try {
    while (threads.size() + 1 < workers_) threads.emplace_back([this] { work(); });
    make_ready(*main_);
    work();
  } catch (const std::exception& error) {
    error_ = std::make_exception_ptr(
        StartupError(fmt::format("cannot start {} workers: {}", workers_, error.what())));
    stop();
  }
  for (std::thread& thread : threads) thread.join();
  if (error_) std::rethrow_exception(error_);
}

Goroutine& Scheduler::add(Task<> task) {
  Goroutine& goroutine = task.goroutine();
  const std::lock_guard lock(mutex_);
  goroutines_.emplace(&goroutine, std::move(task));
  ++unfinished_;
  return goroutine;
}

void Scheduler::finish(Goroutine& goroutine) {
  const bool last = &goroutine == main_;
  static OncePerSecond may_say;
  std::unique_lock lock(mutex_);
  auto ended = goroutines_.extract(&goroutine);
  lock.unlock();
  try {
    ended.mapped().await_resume();
  } catch (const std::exception& error) {
    if (last) error_ = std::current_exception();
    if (!last && may_say()) log_line("a goroutine has ended: {}", error.what());
  }
  ended = {};  // the frame is gone before it is counted
  --unfinished_;
  if (last) stop();
}

void Scheduler::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_.notify_all();
  break_poll();
}

// ---- Running. Go: schedule, execute, findRunnable.

void Scheduler::work() {
  this_worker().scheduler = this;
  while (Goroutine* goroutine = next()) run(this_worker(), *goroutine);
  this_worker().scheduler = nullptr;
}

// One turn. After a commit another worker may run the goroutine, and destroy it.
void Scheduler::run(Worker& worker, Goroutine& goroutine) {
  worker.goroutine = &goroutine;
  worker.budget = kBudget;
  for (;;) {
    if (!goroutine.operation || goroutine.operation->attempt()) {
      goroutine.operation = nullptr;
      goroutine.point.resume();
      if (!goroutine.point) return finish(goroutine);
      if (!goroutine.operation && worker.budget < 0) return make_ready(goroutine, false);
      if (!goroutine.operation) continue;  // it called another Task, or returned to one
    }
    if (goroutine.operation->commit(goroutine)) return;
  }
}

// A poll without a worker can wait until a sleeper checks: most turns are over by then.
Goroutine* Scheduler::next() {
  std::unique_lock lock(mutex_, std::try_to_lock);
  for (int i = 0; i < 200 && !lock; ++i) lock.try_lock();  // it is free in a moment
  if (!lock) lock.lock();
  while (!stopping_) {
    if (queue_.size() > 0 && (round_ > 0 || polling_)) {
      Goroutine* goroutine = queue_.pop();
      if (round_ > 0) --round_;
      if (queue_.size() > 0 || (!polling_ && !watched_)) wake();
      return goroutine;
    }
    polling_ ? sleep(lock) : poll(lock);
  }
  return nullptr;
}

// One at a time is enough: the worker that is woken leaves work behind too, and wakes the next.
void Scheduler::wake() {
  if (sleepers_ == 0 && queue_.size() > 0) break_poll();
  if (sleepers_ > 0 && !std::exchange(waking_, true)) wake_.notify_one();
}

void Scheduler::make_ready(Goroutine& goroutine, bool now) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;  // it will be destroyed
  queue_.push(goroutine);
  if (now) wake();
}

// ---- Polling, timers, sleeping.

// Goroutines that are woken come first. Timers fire without the lock: they make others ready.
void Scheduler::poll(std::unique_lock<std::mutex>& lock) {
  polling_ = true;
  ++polls_;
  blocked_ = queue_.size() == 0;
  const auto until = !blocked_ ? kPast : timers_.empty() ? kNever : timers_.begin()->first;
  lock.unlock();
  const GoroutineList woken = netpoller_.poll(until);
  lock.lock();
  blocked_ = false;
  queue_.push_front(woken);
  const auto now = timers_.empty() ? kPast : Clock::now();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Timer& timer = *timers_.extract(timers_.begin()).value().second;
    timer.due = kNever;
    lock.unlock();
    timer.fire();
    lock.lock();
  }
  polling_ = watch_off_ = false;
  round_ = queue_.size();
}

// A deadline is put off with each message: that costs a look at the timer, and no lock.
bool Scheduler::add_timer(Timer& timer, Clock::time_point at) try {
  if (timer.due.load() <= at) return true;
  const std::lock_guard lock(mutex_);
  if (timer.due.load() <= at) return true;
  timers_.emplace(at, &timer);
  timers_.erase({timer.due.exchange(at), &timer});
  if (timers_.begin()->second == &timer) break_poll();
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

// The watch: one sleeper checks that a worker polls, and polls if all others are busy for
// long. It stops when one poll lasts for two checks. The server is idle then; and when that
// poll has returned, its worker finds no watch, and wakes a sleeper.
void Scheduler::sleep(std::unique_lock<std::mutex>& lock) {
  const auto woken = [this] { return waking_ || stopping_; };
  ++sleepers_;
  while (!watched_ && !watch_off_ && !woken()) {
    const auto before = polls_;
    watched_ = true;
    const bool check = !wake_.wait_for(lock, watch_, woken);
    watched_ = false;
    watch_off_ = check && polls_ == before;
  }
  if (polling_) wake_.wait(lock, woken);
  --sleepers_;
  waking_ = false;
}

std::string Scheduler::trace() {
  const std::lock_guard lock(mutex_);
  const std::size_t running = workers_ - sleepers_ - (polling_ ? 1 : 0);
  const std::size_t active = std::min(goroutines_.size(), running + queue_.size());
  return fmt::format(
      "SCHED workers={} running={} sleeping={} polling={} queue={} parked={} polls={}", workers_,
      running, sleepers_, int{polling_}, queue_.size(), goroutines_.size() - active, polls_);
}
