#include "sessions.h"

#include <utility>

Session::Session(Sessions& of, Conn& its) : sessions(of), conn(its) {
  const std::lock_guard lock(sessions.mutex_);
  after = std::exchange(sessions.first_, this);
  if (after) after->before = this;
}

Session::~Session() {
  const std::lock_guard lock(sessions.mutex_);
  (before ? before->after : sessions.first_) = after;
  if (after) after->before = before;
}

// A client that is quiet, and has received all, gets a deadline that has passed, and not a
// close: if it has spoken just now, its goroutine takes the deadline back, or finds that
// there are bytes (server.cpp).
void Sessions::end_the_quiet() {
  const std::lock_guard lock(mutex_);
  for (Session* session = first_; session; session = session->after) {
    if (session->quiet.exchange(true) && !session->conn.underway().out)
      session->conn.set_read_deadline(Clock::time_point::min());
  }
}

void Session::stirs() {
  if (!quiet) return;
  const std::lock_guard lock(sessions.mutex_);
  quiet = false;
  conn.set_read_deadline(kNever);
}

void Sessions::close_all() {
  const std::lock_guard lock(mutex_);
  for (Session* session = first_; session; session = session->after) session->conn.close();
}
