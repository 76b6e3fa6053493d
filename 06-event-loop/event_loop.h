// EventLoop: waits for all connections at once, on one thread, and calls the handler.
//
//   EventLoop loop{on_request};
//   loop.serve(std::move(listener));
//
// `on_request` is called when bytes have arrived. It takes whole requests from
// conn.reader(), and leaves an incomplete one until more bytes arrive. If it leaves
// 64 KiB, no more can be read, and the connection is closed. If it throws, its connection
// is closed, and no other. It must not block, because all clients wait for it.
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

  // Serves until stop. Throws std::system_error if it cannot wait any more, which is a bug.
  void serve(Listener listener);

  // Ends serve: no new client is accepted, and connections with bytes on their way are served.
  // serve returns when all are closed, after 5 s at the latest (or when a handler that blocks
  // returns). A signal handler may call it.
  void stop();

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
  std::vector<std::shared_ptr<Connection>> closed_;       // closed in this batch of events
  std::size_t open_ = 0;
  std::size_t refused_ = 0;

  Listener* listener_ = nullptr;  // the argument of serve
  bool accepting_ = false;
  OncePerSecond may_say_;

  Pipe wake_ = make_pipe();
  std::mutex mutex_;  // guards posted_
  std::vector<Callback> posted_;
  std::atomic<bool> stop_asked_ = false;
  bool stopping_ = false;
  Clock::time_point next_tick_ = kNever;
  Clock::time_point grace_ends_;
  Clock::time_point last_tick_;
};
