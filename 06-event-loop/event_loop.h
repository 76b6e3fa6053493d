// EventLoop: waits for all connections at once, on one thread, and calls the handler.
//
//   EventLoop loop{on_request};
//   loop.serve(std::move(listener));
//
// `on_request` is called when bytes have come; it takes those that make a whole request
// from conn.reader(), and leaves the others until more have come. If it leaves 64 KiB,
// nothing can ever come behind them, and the connection is closed. If it throws, its
// connection is closed, and no other. It must not block: everybody waits for it.
//
// `post` and `stop` may be called by any thread; all else belongs to the thread that
// made the loop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
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

class EventLoop {
 public:
  using OnRequest = std::function<void(Connection&)>;

  // A connection on which no byte has moved for `idle_timeout` is closed; 0: never.
  explicit EventLoop(OnRequest on_request,
                     std::chrono::milliseconds idle_timeout = std::chrono::milliseconds(0));

  // Serves until stop. Throws std::system_error when it cannot wait any more: a bug.
  void serve(Listener listener);

  // Ends serve: nobody new comes in, those with bytes on their way are served, and it
  // returns when all have gone, after 5 s at the latest. A signal handler may call it.
  void stop();

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

  void accept_ready(std::size_t most);
  bool admit(Fd socket);
  void pause_accepting(int error);
  void resume_accepting();
  void watch_idle(Connection& connection);

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
  std::vector<Task> tasks_;
  std::atomic<bool> stop_asked_ = false;
  bool stopping_ = false;
  Clock::time_point next_tick_ = kNever;
  Clock::time_point grace_ends_;
  Clock::time_point last_tick_;
};
