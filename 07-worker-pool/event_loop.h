// EventLoop: waits for all connections at once, on one thread, and calls the handler.
//
//   EventLoop loop{on_request};
//   loop.serve(std::move(listener));
//
// `on_request` is called when bytes have come, or when a reply has gone that had to wait,
// for a job or for room, and something was left in the reader; it takes those that make a
// whole request from conn.reader(), and leaves the others until more have come. If it leaves
// 64 KiB, nothing can ever come behind them, and the connection is closed. If it throws, its
// connection is closed, and no other. It must not block: what would is for conn.offload.
//
// `post` and `stop` may be called by any thread; all else belongs to the thread that
// made the loop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "connection.h"
#include "listener.h"
#include "poller.h"
#include "timers.h"
#include "worker_pool.h"

class EventLoop {
 public:
  using OnRequest = std::function<void(Connection&)>;

  // A connection on which no byte has moved for `idle_timeout` is closed; 0: never.
  // `workers` threads do jobs, at most `queue` wait for one. Throws StartupError when
  // there cannot be so many threads.
  EventLoop(OnRequest on_request, std::chrono::milliseconds idle_timeout, std::size_t workers,
            std::size_t queue);

  // Serves until stop. Throws std::system_error when it cannot wait any more: a bug.
  void serve(Listener listener);

  // Ends serve: nobody new comes in, those with bytes on their way are served, and it
  // returns when all have gone, after 5 s at the latest. A signal handler may call it.
  // Jobs are finished as far as there is time for it, and their replies sent. (Not if
  // their connection is closed.)
  void stop();

  // Jobs in the pool that are left after serve, as they took too long. The loop's destructor
  // drops those that wait, and waits for those that are being done.
  std::size_t unfinished_jobs() const;

  // Has the loop's thread run the task soon; or, by run_after, when the delay has passed.
  // What a task throws, serve throws.
  void post(Task task);
  Timer run_after(std::chrono::milliseconds delay, Task task);
  void cancel(const Timer& timer);

  // Ends the program, with a word, on any other thread: a program that gets this wrong has
  // a data race, and that has no defined behaviour to go on with.
  void assert_in_loop_thread() const;

 private:
  friend class Connection;

  void turn();
  void handle(const Ready& ready);
  void run(Connection& connection, void (Connection::*step)());
  void apply_interest(Connection& connection);
  void close(Connection& connection);
  std::shared_ptr<Connection>& slot(int fd);

  void queue_up(Connection& connection);
  void let_in();
  struct Work;
  void start_job(Connection& connection);
  void finish_job(Work& work);

  void accept_ready(std::size_t most);
  bool admit(Fd socket);
  void pause_accepting(int error);
  void resume_accepting();
  void watch_idle(Connection& connection);

  void post(std::list<Task>& one);  // takes it out, without memory
  void wake();
  void woken();
  void begin_stop();
  void stop_listening();
  void on_tick();
  void tick_later();

  const std::thread::id thread_ = std::this_thread::get_id();
  const OnRequest on_request_;
  const std::chrono::milliseconds idle_timeout_;
  Poller poller_;
  Timers timers_;
  std::vector<std::shared_ptr<Connection>> connections_;  // by descriptor
  std::vector<std::shared_ptr<Connection>> closed_;       // in this batch of events
  std::size_t open_ = 0;
  std::size_t refused_ = 0;

  Listener* listener_ = nullptr;  // of serve
  bool accepting_ = false;
  OncePerSecond may_say_;

  Pipe wake_ = make_pipe();
  std::mutex mutex_;  // of tasks_
  std::list<Task> tasks_;
  std::atomic<bool> stop_asked_ = false;
  bool stopping_ = false;
  Clock::time_point next_tick_ = kNever;
  Clock::time_point grace_ends_;
  Clock::time_point last_tick_;

  std::deque<std::weak_ptr<Connection>> line_;  // whose job is not yet in the queue
  std::size_t unfinished_jobs_ = 0;             // in the queue, at work, or on their way back
  const std::size_t most_jobs_;  // of them; before a worker has looked all may be in the queue
  WorkerPool workers_;           // the last member, so the first to go: its threads use the others
};
