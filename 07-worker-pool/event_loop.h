// EventLoop: waits for all connections at once, on one thread, and calls the handler.
//
//   EventLoop loop{on_request};
//   loop.serve(std::move(listener));
//
// `on_request` is called when bytes have arrived. If bytes are left in the reader, it is
// also called when a reply that had to wait, for a job or for room, has gone. It takes whole
// requests from conn.reader(), and leaves an incomplete one until more bytes arrive. If it
// leaves 64 KiB, no more can be read, and the connection is closed. If it throws, its
// connection is closed, and no other. It must not block: conn.offload is for work that does.
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
  // `workers` threads run jobs; at most `queue` jobs wait for one. Throws StartupError if
  // the threads cannot be created.
  EventLoop(OnRequest on_request, std::chrono::milliseconds idle_timeout, std::size_t workers,
            std::size_t queue);

  // Serves until stop. Throws std::system_error if it cannot wait any more, which is a bug.
  void serve(Listener listener);

  // Ends serve: no new client is accepted, and connections with bytes on their way are served.
  // serve returns when all are closed, after 5 s at the latest. A signal handler may call it.
  // Jobs are finished and their replies sent, as far as there is time. (No reply is sent if
  // the connection is closed.)
  void stop();

  // The number of jobs left in the pool after serve, because they took too long. The loop's
  // destructor drops the jobs that wait, and waits for the jobs that run.
  std::size_t unfinished_jobs() const;

  // The loop's thread runs the callback soon or, with run_after, when the delay has passed.
  // If a callback throws, serve ends with that exception.
  void post(Callback callback);
  Timer run_after(std::chrono::milliseconds delay, Callback callback);
  void cancel(const Timer& timer);

  // Logs a line and ends the program if called on another thread: such a program has a data
  // race, so its behaviour is undefined.
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

  void post(std::list<Callback>& one);  // moves it out, and allocates nothing
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
  std::vector<std::shared_ptr<Connection>> closed_;       // closed in this batch of events
  std::size_t open_ = 0;
  std::size_t refused_ = 0;

  Listener* listener_ = nullptr;  // the argument of serve
  bool accepting_ = false;
  OncePerSecond may_say_;

  Pipe wake_ = make_pipe();
  std::mutex mutex_;  // guards posted_
  std::list<Callback> posted_;
  std::atomic<bool> stop_asked_ = false;
  bool stopping_ = false;
  Clock::time_point next_tick_ = kNever;
  Clock::time_point grace_ends_;
  Clock::time_point last_tick_;

  std::deque<std::weak_ptr<Connection>> line_;  // their jobs are not yet queued
  std::size_t unfinished_jobs_ = 0;             // queued, running, or on their way back
  const std::size_t most_jobs_;  // limit of unfinished_jobs_; at first, all may be queued
  WorkerPool workers_;           // last member, so destroyed first: its threads use the others
};
