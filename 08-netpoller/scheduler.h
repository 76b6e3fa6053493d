// Scheduler: many goroutines on a few threads. Go: runtime/proc.go, runtime/time.go.
//
// A worker is a thread that runs goroutines, each until it parks. One mutex guards the queue
// of all workers, the timers, the right to poll, and the sleeping workers. After a round, in
// which each goroutine that was in the queue had one turn, a worker polls: that is all it
// takes to be fair to goroutines, network and timers. With nothing to run, one worker blocks
// in the poll, and the others sleep.
//
// One rule says which worker is woken: what a worker leaves behind when it runs a goroutine (others
// that are ready, the poll) gets another worker, if one sleeps.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "blocking_pool.h"
#include "netpoll.h"

struct Worker {                          // there is one for each thread
  class Scheduler* scheduler = nullptr;  // null: it runs no goroutines
  Goroutine* goroutine = nullptr;        // that it runs
  int budget = 0;                        // of its turn
  std::unique_ptr<char[]> spare_buffer;  // see Read
};
Worker& this_worker();

class Scheduler {
 public:
  // `workers` threads run goroutines, one of them the caller of run(); up to `blocking` others
  // run blocking calls. Throws std::invalid_argument, StartupError, std::system_error.
  Scheduler(std::size_t workers, std::size_t blocking,
            std::chrono::microseconds watch = std::chrono::milliseconds(1));
  // Waits for blocking calls, then destroys the goroutines that have not ended.
  ~Scheduler() { pool_.join(); }

  // Runs `main`, and what it starts, until `main` ends. Throws what `main` throws, and
  // StartupError if a thread cannot be started.
  void run(Task<> main);
  // Any thread may call these.
  void go(Task<> task) { make_ready(add(std::move(task))); }
  void make_ready(Goroutine& goroutine, bool now = true);  // false: its worker calls next()
  // A timer that was added before is moved if `at` is earlier. Returns false without memory.
  // On return the timer may have fired, and been destroyed.
  bool add_timer(Timer& timer, Clock::time_point at);
  std::size_t unfinished() const { return unfinished_; }
  std::string trace();  // one line, after GODEBUG=schedtrace
  Netpoller& netpoller() { return netpoller_; }
  BlockingPool& pool() { return pool_; }

 private:
  Goroutine& add(Task<> task);
  void work();
  void run(Worker& worker, Goroutine& goroutine);
  void finish(Goroutine& goroutine);
  Goroutine* next();
  void wake();
  void poll(std::unique_lock<std::mutex>& lock);
  void sleep(std::unique_lock<std::mutex>& lock);
  void break_poll() {
    if (std::exchange(blocked_, false)) netpoller_.break_poll();
  }
  void stop();
  const std::size_t workers_;
  const std::chrono::microseconds watch_;
  Netpoller netpoller_;
  BlockingPool pool_;
  std::atomic<std::size_t> unfinished_ = 0;
  Goroutine* main_ = nullptr;
  std::exception_ptr error_;  // of main

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  GoroutineList queue_;    // that are ready
  std::size_t round_ = 0;  // how many of them have a turn before the next poll
  std::set<std::pair<Clock::time_point, Timer*>> timers_;
  bool polling_ = false;  // a worker has the right to poll
  bool blocked_ = false;  // and waits there
  std::size_t polls_ = 0;
  std::size_t sleepers_ = 0;
  bool waking_ = false;     // a sleeper was notified and has not run yet
  bool watched_ = false;    // a sleeper checks every watch_ that a worker polls
  bool watch_off_ = false;  // the poll has lasted so long that none checks
  bool stopping_ = false;
  std::unordered_map<Goroutine*, Task<>> goroutines_;  // all; destroyed first
};
