// Connection: one client, as a handler sees it: bytes to read, and a way to answer.
//
// Everything here belongs to the loop's thread, and says so if another one calls. A
// connection lives in the loop's table until it is closed, and as an object until the
// batch of events in which that happened is done: a handler may close any connection,
// its own too, and go on using it; it is only of no effect any more.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/socket/fd.h"
#include "poller.h"
#include "timers.h"

class EventLoop;

// Bytes that have come and that no handler has taken yet. A view that it returns is
// valid until the handler returns. Each call gives at most what is there.
class Reader {
 public:
  std::size_t len() const { return data_.size() - taken_; }
  std::string_view peek(std::size_t size) const;  // leaves them
  std::string_view next(std::size_t size);        // takes them
  void skip(std::size_t size) { (void)next(size); }

 private:
  friend class Connection;
  void append(std::string_view data);
  void forget_taken();  // when no view is in use; with nothing unread it keeps no buffer

  std::string data_;
  std::size_t taken_ = 0;  // of data_, from its front
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(EventLoop& loop, Fd socket);

  Reader& reader();

  // Sends it, or keeps what the socket does not take until it does. No more requests
  // are read while 64 KiB or more are kept; so what is kept grows by what one call of its
  // own handler writes, and by no more. (What others write to it is for them to bound.)
  void write(std::string_view data);

  // At once: what was kept is dropped.
  void close();

  // Has a worker do what would block the loop, and then calls `then` with the result, on
  // the loop's thread; if the job throws, the connection is closed. Meanwhile no other
  // request is read from this client: so its replies stay in order, and it has one job at
  // a time (a second is a std::logic_error; `then` may begin the next). The job must own
  // what it uses: the reader's bytes are gone when the handler returns, and the
  // connection may be closed before the job is done; then there is no `then`.
  using Job = std::function<std::string()>;
  using Then = std::function<void(Connection&, std::string result)>;
  void offload(Job job, Then then);

 private:
  friend class EventLoop;

  std::size_t room() const;  // bytes that may still be read
  Interest interest() const;
  void on_readable();
  void on_writable();
  void on_idle_timer();
  void start_job();
  void on_result();
  void next_request();
  void request();  // has the handler look at what is there

  EventLoop& loop_;
  Fd socket_;
  Reader input_;
  std::string output_;    // written, and not yet sent
  Interest watched_;      // what the poller was told
  bool waiting_ = false;  // for its job: in the line, in the queue or at work
  Job job_;               // while it is in the line
  Then then_;
  std::string result_;  // for then_
  bool peer_finished_ = false;
  bool closed_ = false;
  Clock::time_point last_active_ = Clock::now();  // when bytes last went either way
  Timer idle_timer_;
};
