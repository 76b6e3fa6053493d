#include "event_loop.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <exception>
#include <new>
#include <utility>

using std::chrono::milliseconds;

namespace {

constexpr std::size_t kAccepts = 64;  // before others have their turn
constexpr milliseconds kTick{200};    // from one look at things to the next
constexpr milliseconds kGrace{5000};  // from a stop to the end, at most

}  // namespace

EventLoop::EventLoop(OnRequest on_request, milliseconds idle_timeout)
    : on_request_(std::move(on_request)), idle_timeout_(idle_timeout) {
  if (!poller_.set_interest(wake_.read_end.get(), kNone, kRead))
    throw StartupError("cannot watch a pipe: no room");
}

void EventLoop::serve(Listener listener) {
  assert_in_loop_thread();
  listener_ = &listener;
  resume_accepting();
  while (listener_->socket() || open_ > 0) turn();
  if (refused_ > 0) log_line("{} connections were refused", refused_);
  listener_ = nullptr;
}

// One turn of the loop. Timers come last: a client that was silent for too long may
// have spoken meanwhile, and that is known now.
void EventLoop::turn() {
  for (const Ready& ready : poller_.wait(timers_.until_next(next_tick_))) handle(ready);
  timers_.run_due();
  if (next_tick_ != kNever && Clock::now() >= next_tick_) on_tick();
  for (const auto& connection : closed_) connection->socket_.reset();
  closed_.clear();
  if (stopping_ && accepting_) accept_ready(1);  // is anyone left in the backlog?
}

void EventLoop::handle(const Ready& ready) {
  if (ready.fd == wake_.read_end.get()) return woken();
  if (ready.fd == listener_->socket().get()) return accept_ready(kAccepts);
  if (!slot(ready.fd)) return;  // closed by an earlier event of this batch
  Connection& connection = *slot(ready.fd);
  if (ready.readable && connection.interest().read) run(connection, &Connection::on_readable);
  if (ready.writable && connection.interest().write) run(connection, &Connection::on_writable);
}

// What is thrown on the way, by a handler or for want of memory, ends this connection
// and no other.
void EventLoop::run(Connection& connection, void (Connection::*step)()) {
  if (connection.closed_) return;
  try {
    (connection.*step)();
    apply_interest(connection);
  } catch (const std::exception& error) {
    if (may_say_()) log_line("a connection is closed: {}", error.what());
    close(connection);
  } catch (...) {
    if (may_say_()) log_line("a connection is closed: its handler threw something");
    close(connection);
  }
}

// A connection knows what it wants; the poller is told when that has changed. Nothing:
// it is finished.
void EventLoop::apply_interest(Connection& connection) {
  const Interest now = connection.interest();
  if (connection.closed_ || now == connection.watched_) return;
  if (now == kNone) return close(connection);
  if (!poller_.set_interest(connection.socket_.get(), connection.watched_, now))
    return close(connection);
  connection.watched_ = now;
}

// The descriptor, and the object, are kept until the batch is done: the number would
// be given to someone new, and the caller may go on with the object.
void EventLoop::close(Connection& connection) {
  if (std::exchange(connection.closed_, true)) return;
  const int fd = connection.socket_.get();
  poller_.set_interest(fd, std::exchange(connection.watched_, kNone), kNone);
  timers_.cancel(connection.idle_timer_);
  closed_.push_back(std::move(slot(fd)));
  --open_;
  resume_accepting();
}

std::shared_ptr<Connection>& EventLoop::slot(int fd) {
  const auto index = static_cast<std::size_t>(fd);
  if (index >= connections_.size()) {
    closed_.reserve(2 * index);  // to close them all takes no more memory
    connections_.resize(2 * index);
  }
  return connections_[index];
}

void EventLoop::accept_ready(std::size_t most) {
  for (std::size_t i = 0; i < most; ++i) {
    Accepted next = listener_->accept();
    if (next.status == Io::would_block) {
      if (stopping_) stop_listening();
      return;
    }
    if (next.status == Io::out_of_resources) return pause_accepting(next.error);
    try {
      if (!admit(std::move(next.connection))) return;
    } catch (const std::bad_alloc&) {
      return pause_accepting(ENOMEM);
    }
  }
}

// False: it cannot be served, and is closed.
bool EventLoop::admit(Fd socket) {
  const int fd = socket.get();
  auto connection = std::make_shared<Connection>(*this, std::move(socket));
  std::shared_ptr<Connection>& place = slot(fd);
  watch_idle(*connection);
  if (!poller_.set_interest(fd, kNone, kRead)) {
    if (refused_++ == 0) log_line("cannot watch descriptor {}: refused, as others will be", fd);
    timers_.cancel(connection->idle_timer_);
    return false;
  }
  connection->watched_ = kRead;
  place = std::move(connection);
  ++open_;
  return true;
}

// Without a descriptor there is nothing to accept with; yet the listener stays
// readable, and a loop that only tried again would spin. So it is not watched until
// a connection closes, or a tick: descriptors can be short in the whole system.
void EventLoop::pause_accepting(int error) {
  if (may_say_()) log_line("cannot accept: {}; those who are in are served", error_text(error));
  tick_later();
  poller_.set_interest(listener_->socket().get(), kRead, kNone);
  accepting_ = false;
}

void EventLoop::resume_accepting() {
  if (accepting_ || !listener_->socket()) return;
  accepting_ = poller_.set_interest(listener_->socket().get(), kNone, kRead);
  if (!accepting_) tick_later();
}

// Every byte puts off the end, so the timer is not set anew for each: it finds out, when
// it is due, from when it should have counted.
void EventLoop::watch_idle(Connection& connection) {
  if (idle_timeout_ == milliseconds(0)) return;
  connection.idle_timer_ =
      timers_.add(connection.last_active_ + idle_timeout_,
                  [this, &connection] { run(connection, &Connection::on_idle_timer); });
}

void EventLoop::post(Task task) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) wake();
}

void EventLoop::stop() {
  const int error = errno;  // a signal handler must leave it as it was
  stop_asked_ = true;
  wake();
  errno = error;
}

// A byte in the pipe makes its other end readable, and ends the wait. If the pipe is
// full (EAGAIN), it is readable already. Whatever else fails is tried again: nobody would
// make up for a wake-up that is lost.
void EventLoop::wake() {
  while (::write(wake_.write_end.get(), "!", 1) < 0 && errno != EAGAIN) {
  }
}

// The pipe is emptied first: what is posted after that writes a new byte. The tasks run
// unlocked, for they may post others.
void EventLoop::woken() {
  std::array<char, 64> bytes;
  while (read_some(wake_.read_end, bytes).status == Io::ok) {
  }
  if (stop_asked_ && !stopping_) begin_stop();
  std::vector<Task> tasks;
  {
    const std::lock_guard lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const Task& task : tasks) task();
}

Timer EventLoop::run_after(milliseconds delay, Task task) {
  assert_in_loop_thread();
  return timers_.add(Clock::now() + delay, std::move(task));
}

void EventLoop::cancel(const Timer& timer) {
  assert_in_loop_thread();
  timers_.cancel(timer);
}

void EventLoop::assert_in_loop_thread() const {
  if (std::this_thread::get_id() == thread_) return;
  log_line("only post() and stop() of an event loop may be called by another thread");
  std::abort();
}

// The clients in the backlog are still served: they are connected, as far as they know.
void EventLoop::begin_stop() {
  stopping_ = true;
  grace_ends_ = Clock::now() + kGrace;
  tick_later();
  if (accepting_) accept_ready(kAccepts);
}

// Called when the backlog is empty. While descriptors are short that takes until enough
// connections have closed; then, or if clients keep coming, the grace is the limit.
void EventLoop::stop_listening() {
  if (accepting_) poller_.set_interest(listener_->socket().get(), kRead, kNone);
  accepting_ = false;
  listener_->close();
}

// A look at what no event will tell: whether there are descriptors again, and, when
// stopping, which clients can go. A queue that is empty now may have bytes on their way to it; so
// nobody goes before one whole tick in which nothing happened.
void EventLoop::on_tick() {
  next_tick_ = kNever;
  resume_accepting();
  if (!stopping_) return;
  const bool give_up = Clock::now() + kTick > grace_ends_;  // there is no other tick before
  if (give_up) stop_listening();
  for (const auto& entry : connections_) {
    if (!entry) continue;
    Connection& connection = *entry;  // closing moves the entry away
    const bool quiet = connection.last_active_ < last_tick_;
    const auto [in, out] = underway(connection.socket_);
    const bool done = quiet && connection.output_.empty() && !in && !out;
    if (done || give_up) close(connection);
  }
  last_tick_ = Clock::now();
  tick_later();
}

// A tick that is due stays due: a pause must not put off the end of the grace. It is no entry
// of timers_: those take memory, and that may be what is short.
void EventLoop::tick_later() { next_tick_ = std::min(next_tick_, Clock::now() + kTick); }
