#include "event_loop.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>

using std::chrono::milliseconds;

namespace {

constexpr std::size_t kAccepts = 64;  // connections accepted in one turn
constexpr milliseconds kTick{200};    // from one tick to the next
constexpr milliseconds kGrace{5000};  // limit of shutdown, from stop on

}  // namespace

EventLoop::EventLoop(OnRequest on_request, milliseconds idle_timeout, std::size_t workers,
                     std::size_t queue)
    : on_request_(std::move(on_request)),
      idle_timeout_(idle_timeout),
      most_jobs_(workers + queue),
      workers_(workers, most_jobs_) {
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

// One turn of the loop. Timers come last: a client whose idle timer is due may have sent
// something meanwhile, and that is known now.
void EventLoop::turn() {
  for (const Ready& ready : poller_.wait(timers_.until_next(next_tick_))) handle(ready);
  timers_.run_due();
  if (next_tick_ != kNever && Clock::now() >= next_tick_) on_tick();
  for (const auto& connection : closed_) connection->socket_.reset();
  closed_.clear();
  if (stopping_ && accepting_) accept_ready(1);  // is a client left in the backlog?
}

void EventLoop::handle(const Ready& ready) {
  if (ready.fd == wake_.read_end.get()) return woken();
  if (ready.fd == listener_->socket().get()) return accept_ready(kAccepts);
  if (!slot(ready.fd)) return;  // closed by an earlier event of this batch
  Connection& connection = *slot(ready.fd);
  if (ready.readable && connection.interest().read) run(connection, &Connection::on_readable);
  if (ready.writable && connection.interest().write) run(connection, &Connection::on_writable);
}

// An exception, from a handler or for lack of memory, ends this connection and no other.
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

// Tells the poller when a connection's interest has changed. A connection that is
// interested in nothing is finished, unless its job is not.
void EventLoop::apply_interest(Connection& connection) {
  if (connection.closed_) return;
  const Interest now = connection.interest();
  if (now == kNone && !connection.waiting_) return close(connection);
  if (now == connection.watched_) return;
  if (!poller_.set_interest(connection.socket_.get(), connection.watched_, now))
    return close(connection);
  connection.watched_ = now;
}

// Keeps the descriptor and the object until the batch is done: the number could be given
// to a new connection, and the caller may go on using the object.
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
    closed_.reserve(2 * index);  // so that closing all allocates nothing
    connections_.resize(2 * index);
  }
  return connections_[index];
}

// Every connection that has a job joins the line, and is let in when there is room: one
// job for each worker, and as many more as the queue is long. Meanwhile it is not read
// from. What its client sends next waits in the kernel, and when that is full too, in the
// client's own program. So the limit reaches the client.
void EventLoop::queue_up(Connection& connection) {
  line_.push_back(connection.weak_from_this());
  connection.waiting_ = true;
  apply_interest(connection);
  let_in();
}

void EventLoop::let_in() {
  while (!line_.empty() && unfinished_jobs_ < most_jobs_) {
    const auto connection = line_.front().lock();
    line_.pop_front();
    if (connection) run(*connection, &Connection::start_job);
  }
}

// A job has only a weak reference to its connection, which may be closed before the job is
// done. Only the loop's thread uses that reference.
struct EventLoop::Work {
  std::weak_ptr<Connection> connection;
  Connection::Job job;
  std::optional<std::string> result;
};

// The callback with the result is allocated now: when the job is done there may be no memory.
void EventLoop::start_job(Connection& connection) {
  auto work = std::make_shared<Work>();
  work->connection = connection.weak_from_this();
  work->job = std::exchange(connection.job_, nullptr);
  std::list<Callback> back;
  back.emplace_back([this, work] { finish_job(*work); });
  auto there = [this, work = std::move(work), back = std::move(back)]() mutable {
    try {
      work->result = work->job();
    } catch (const std::exception& error) {
      if (may_say_()) log_line("a job has failed: {}", error.what());
    } catch (...) {
      if (may_say_()) log_line("a job has failed: it threw something");
    }
    work->job = nullptr;
    post(back);
  };
  if (workers_.try_submit(std::move(there))) ++unfinished_jobs_;
}

// A job counts as finished here, and not when its worker has returned from it: that may be
// after the reply has gone, and after the loop has ended.
void EventLoop::finish_job(Work& work) {
  --unfinished_jobs_;
  let_in();
  const auto connection = work.connection.lock();
  if (!connection || connection->closed_) return;
  if (!work.result) return close(*connection);
  connection->result_ = std::move(*work.result);
  run(*connection, &Connection::on_result);
}

std::size_t EventLoop::unfinished_jobs() const {
  assert_in_loop_thread();
  return unfinished_jobs_;
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

// Returns false if the connection cannot be watched; it is then closed.
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

// Without a free descriptor accept fails, yet the listener stays readable: a loop that
// tried again at once would spin. So the listener is not watched until a connection
// closes, or until the next tick, as the whole system may be out of descriptors.
void EventLoop::pause_accepting(int error) {
  if (may_say_()) log_line("cannot accept: {}; existing connections are served", error_text(error));
  tick_later();
  poller_.set_interest(listener_->socket().get(), kRead, kNone);
  accepting_ = false;
}

void EventLoop::resume_accepting() {
  if (accepting_ || !listener_->socket()) return;
  accepting_ = poller_.set_interest(listener_->socket().get(), kNone, kRead);
  if (!accepting_) tick_later();
}

// Every byte moves the deadline, but the timer is not set again for each byte. When the
// timer is due, on_idle_timer works out whether the deadline has really passed.
void EventLoop::watch_idle(Connection& connection) {
  if (idle_timeout_ == milliseconds(0)) return;
  connection.idle_timer_ =
      timers_.add(connection.last_active_ + idle_timeout_,
                  [this, &connection] { run(connection, &Connection::on_idle_timer); });
}

void EventLoop::post(Callback callback) {
  std::list<Callback> one;
  one.push_back(std::move(callback));
  post(one);
}

void EventLoop::post(std::list<Callback>& one) {
  const std::lock_guard lock(mutex_);
  posted_.splice(posted_.end(), one);
  if (posted_.size() == 1) wake();
}

void EventLoop::stop() {
  const int error = errno;  // a signal handler must leave it as it was
  stop_asked_ = true;
  wake();
  errno = error;
}

// A byte in the pipe makes its other end readable, which ends the wait. If the pipe is
// full (EAGAIN), it is readable already. After any other error the write is tried again,
// because no later event would replace a lost wake-up.
void EventLoop::wake() {
  while (::write(wake_.write_end.get(), "!", 1) < 0 && errno != EAGAIN) {
  }
}

// The pipe is emptied first, so that a later post writes a new byte. The callbacks run
// unlocked, because they may post others.
void EventLoop::woken() {
  std::array<char, 64> bytes;
  while (read_some(wake_.read_end, bytes).status == Io::ok) {
  }
  if (stop_asked_ && !stopping_) begin_stop();
  std::list<Callback> callbacks;
  {
    const std::lock_guard lock(mutex_);
    callbacks.swap(posted_);
  }
  for (const Callback& callback : callbacks) callback();
}

Timer EventLoop::run_after(milliseconds delay, Callback callback) {
  assert_in_loop_thread();
  return timers_.add(Clock::now() + delay, std::move(callback));
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

// Called when the backlog is empty. While descriptors are short, it empties only as
// connections close; then, or if clients keep coming, the grace is the limit.
void EventLoop::stop_listening() {
  if (accepting_) poller_.set_interest(listener_->socket().get(), kRead, kNone);
  accepting_ = false;
  listener_->close();
}

// Checks what no event reports: whether descriptors are free again and, at a stop, which
// connections can be closed. Bytes may be on their way to a queue that is empty now, so a
// connection is closed only after a full tick without activity.
void EventLoop::on_tick() {
  next_tick_ = kNever;
  resume_accepting();
  if (!stopping_) return;
  const bool give_up = Clock::now() + kTick > grace_ends_;  // the next tick would be too late
  if (give_up) stop_listening();
  for (const auto& entry : connections_) {
    if (!entry) continue;
    Connection& connection = *entry;  // closing moves the entry away
    const bool quiet = connection.last_active_ < last_tick_;
    const auto [in, out] = underway(connection.socket_);
    const bool done = quiet && !connection.waiting_ && connection.output_.empty() && !in && !out;
    if (done || give_up) close(connection);
  }
  last_tick_ = Clock::now();
  tick_later();
}

// A tick that is due stays due: a pause must not put off the end of the grace. It is no entry
// of timers_, because an entry takes memory, and memory may be short.
void EventLoop::tick_later() { next_tick_ = std::min(next_tick_, Clock::now() + kTick); }
