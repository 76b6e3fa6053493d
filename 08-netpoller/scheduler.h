// Scheduler: many goroutines on a few threads. Go: runtime/proc.go.
//
// A worker is a thread with a run queue. It runs a goroutine until that waits, then the
// next; when its queue is empty it takes from the global queue, or steals half of
// another worker's. When there is nothing at all, one worker blocks in the poll, and the
// others sleep. Go keeps threads (M) and the right to run (P) apart, so that a P can go
// on without a thread that is stuck in a system call. Here a worker is both: a goroutine
// that blocks, blocks its worker. Blocking work goes to a pool (blocking, in net.h).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "netpoll.h"
#include "run_queue.h"
#include "task.h"
#include "timers.h"
#include "worker_pool.h"

class Scheduler;

struct Worker {
  explicit Worker(Scheduler& of) : scheduler(of) {}

  Scheduler& scheduler;
  RunQueue queue;
  std::unique_ptr<char[]> spare_buffer;  // that nobody has borrowed (net.cpp)
  // Of the goroutine that it runs.
  Goroutine* goroutine = nullptr;
  std::atomic<bool> busy = false;  // for the trace
  int budget = 0;                  // below zero: it has tried one operation too many
  // Of its search for the next one.
  std::uint32_t turns = 0;
  std::uint32_t polled = 0;  // the turn of its last poll
  bool spinning = false;     // it looks for work; while it sleeps: it has been woken
  std::condition_variable wake;
};

class Scheduler {
 public:
  // `workers` threads run goroutines, one of them is that which calls run(); `blocking`
  // others do what blocks. Throws StartupError: no netpoller.
  Scheduler(std::size_t workers, std::size_t blocking);

  // Runs `main`, and all goroutines that it starts, until `main` ends. Those that have not
  // ended by then are dropped, as in Go when main returns; unfinished() says how many. They
  // may run for a moment longer than main: what they refer to must not be main's own. Throws
  // what main throws; StartupError for want of threads. (A poll that fails is a bug, and ends
  // the program.)
  void run(Task main);

  // Any thread may call these.
  void go(Task task);
  void ready(GoroutineList list);
  void put_behind(Goroutine& goroutine);  // it can go on, but others first

  Netpoller& netpoller() { return netpoller_; }
  Timers& timers() { return timers_; }
  WorkerPool& pool() { return pool_; }
  std::size_t unfinished() const { return goroutines_; }

  std::string trace();  // a line as of GODEBUG=schedtrace (schedtrace.cpp)

 private:
  std::thread start(Worker& worker);
  void work(Worker& worker);
  void run(Worker& worker, Goroutine& goroutine);
  void finish(Goroutine& goroutine);

  Goroutine* find_runnable(Worker& worker);
  Goroutine* steal(Worker& worker);
  void stop_spinning(Worker& worker);
  bool poll_now(Worker& worker);
  bool poll(Worker& worker, Clock::time_point until);
  void idle(Worker& worker);
  void sleep(Worker& worker, bool stay);
  void watch();
  bool has_work() const;
  void wake_one();
  void stop();

  std::vector<std::unique_ptr<Worker>> workers_;
  RunQueue global_;
  std::atomic<bool> polling_ = false;
  Timers timers_;
  Netpoller netpoller_;
  Goroutine* main_ = nullptr;
  std::exception_ptr main_error_;
  std::atomic<std::size_t> goroutines_ = 0;
  std::atomic<bool> stopping_ = false;

  std::atomic<int> idle_ = 0;      // workers that sleep or block in the poll
  std::atomic<int> spinning_ = 0;  // workers that look for work
  std::mutex mutex_;               // of sleepers_, of watch(), and of going to sleep
  std::vector<Worker*> sleepers_;
  std::atomic<bool> unwatched_ = false;  // no sleeper keeps watch: the poll has lasted for long
  std::atomic<std::uint64_t> polls_ = 0;
  std::atomic<std::uint64_t> steals_ = 0;
  WorkerPool pool_;  // the last member, so the first to go: its threads use the others
};

// The worker whose thread this is, or none. Not inlined: a coroutine may go on in another
// thread after each co_await, and a compiler that knew this function would remember the
// address from before.
Worker* this_worker();

// Starts a goroutine, from another one.
void go(Task task);
