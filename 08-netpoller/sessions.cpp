#include "sessions.h"

#include <utility>

Session::Session(Sessions& of, Conn& its) : sessions(of), conn(its) { sessions.add(*this); }
Session::~Session() { sessions.remove(*this); }

void Sessions::add(Session& session) {
  const std::lock_guard lock(mutex_);
  session.after = std::exchange(first_, &session);
  if (session.after) session.after->before = &session;
}

void Sessions::remove(Session& session) {
  const std::lock_guard lock(mutex_);
  (session.before ? session.before->after : first_) = session.after;
  if (session.after) session.after->before = session.before;
}

// Who is quiet gets a deadline that has passed, and not a close: if he has spoken just
// now, his goroutine takes it back, or finds that there are bytes (server.cpp).
void Sessions::end_the_quiet() {
  const std::lock_guard lock(mutex_);
  for (Session* session = first_; session; session = session->after) {
    if (session->quiet.exchange(true) && session->reading)
      session->conn.set_read_deadline(Clock::time_point::min());
  }
}

void Sessions::stirs(Session& session) {
  const std::lock_guard lock(mutex_);
  session.quiet = false;
  session.conn.set_read_deadline(kNever);
}

void Sessions::close_all() {
  const std::lock_guard lock(mutex_);
  for (Session* session = first_; session; session = session->after) session->conn.close();
}
