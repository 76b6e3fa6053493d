// Sessions: the connections of a server, so that within its grace it can end without
// losing a byte of theirs.
// Go: http.Server keeps such a list, for Shutdown (net/http/server.go).
#pragma once

#include <atomic>
#include <mutex>

#include "net.h"

struct Session;

class Sessions {
 public:
  void end_the_quiet();  // those on which nothing has happened since the last call
  void close_all();

 private:
  friend struct Session;

  std::mutex mutex_;
  Session* first_ = nullptr;
};

// What must be known of a connection at a stop. It is in the list for as long as it exists.
struct Session {
  Session(Sessions& of, Conn& its);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Said by its goroutine before each read: something has happened. Takes back what
  // end_the_quiet did, which ends nothing but a read.
  void stirs();

  Sessions& sessions;
  Conn& conn;
  std::atomic<bool> quiet = false;  // nothing has happened since the last look
  Session* before = nullptr;        // in the list
  Session* after = nullptr;
};
