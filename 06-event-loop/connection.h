// Connection: a client as a handler sees it, with bytes to read and a way to answer.
//
// Everything here belongs to the loop's thread; a call by another thread ends the
// program. A connection is in the loop's table until it is closed. The object stays until
// the batch of events in which it was closed is done. So a handler may close any
// connection, even its own, and go on using it: its calls then have no effect.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "common/socket/fd.h"
#include "poller.h"
#include "timers.h"

class EventLoop;

// Bytes that have arrived and that no handler has taken yet. A view that it returns is
// valid until the handler returns. Each call returns at most what is there.
class Reader {
 public:
  std::size_t len() const { return data_.size() - taken_; }
  std::string_view peek(std::size_t size) const;  // leaves them
  std::string_view next(std::size_t size);        // takes them
  void skip(std::size_t size) { (void)next(size); }

 private:
  friend class Connection;
  void append(std::string_view data);
  void forget_taken();  // when no view is in use; no buffer while nothing is unread

  std::string data_;
  std::size_t taken_ = 0;  // bytes of data_, from its front
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(EventLoop& loop, Fd socket);

  Reader& reader();

  // Sends `data`, and keeps what the socket does not take yet. While 64 KiB or more are
  // kept, no more requests are read. So its own handler adds at most what one call
  // writes. (Handlers of other connections must limit what they write to this one.)
  void write(std::string_view data);

  // Closes at once, and drops what was kept.
  void close();

 private:
  friend class EventLoop;

  std::size_t room() const;  // bytes that may still be read
  Interest interest() const;
  void on_readable();
  void on_writable();
  void on_idle_timer();
  void request();  // calls the handler for what is there

  EventLoop& loop_;
  Fd socket_;
  Reader input_;
  std::string output_;  // written, and not yet sent
  Interest watched_;    // what the poller was told
  bool peer_finished_ = false;
  bool closed_ = false;
  Clock::time_point last_active_ = Clock::now();  // when a byte last moved
  Timer idle_timer_;
};
