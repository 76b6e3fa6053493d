#include "net.h"

#include <new>

#include "common/socket/process.h"

namespace {

constexpr std::size_t kBuffer = 16 * 1024;

// From the worker, which keeps one that is spare. Nothing: no memory.
Buffer borrow_buffer() {
  auto& spare = this_worker()->spare_buffer;
  return Buffer(spare ? spare.release() : new (std::nothrow) char[kBuffer]);
}

}  // namespace

void GiveBack::operator()(char* buffer) const {
  std::unique_ptr<char[]> given_back(buffer);
  if (Worker* worker = this_worker()) worker->spare_buffer.swap(given_back);
}

// A buffer for as long as the call takes; for longer only if something came.
Io Read::call() {
  Buffer buffer = borrow_buffer();
  const IoResult in =
      buffer ? read_some(desc().fd(), {buffer.get(), kBuffer}) : IoResult{Io::out_of_resources, 0};
  desc().set_drained(in.status == Io::ok && in.size < kBuffer);
  if (in.status == Io::ok) buffer_ = std::move(buffer);
  size_ = in.size;
  return in.status;
}

Io WriteAll::call() {
  while (!left_.empty()) {
    const IoResult out = write_some(desc().fd(), left_);
    if (out.status == Io::would_block && !desc().watch_write()) return Io::out_of_resources;
    if (out.status != Io::ok) return out.status;
    left_.remove_prefix(out.size);
  }
  return Io::ok;
}

Underway Conn::underway() const {
  PollDesc* desc = hold_.desc();
  return desc ? desc->underway(hold_.sequence()) : Underway{};
}

Listener::Listener(Scheduler& scheduler, const Endpoint& endpoint)
    : hold_(scheduler.netpoller().open(
          listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking))) {
  if (!hold_.desc()) throw StartupError("cannot watch the listener: no room");
}

Io Accept::call() {
  for (;;) {
    Accepted next = accept_from(desc().fd(), Mode::non_blocking);
    error_ = next.error;
    if (next.status != Io::ok) return next.status;
    accepted_ = desc().netpoller().open(std::move(next.connection));
    if (accepted_) return Io::ok;
    static OncePerSecond may_say;
    if (may_say()) log_line("a connection was refused: the poller has no room for it");
  }
}

Conn Listener::accept_now() const {
  Accept one(hold_);
  (void)one.call();
  return one.await_resume().conn;
}

// Once it is in the set it may fire, and the goroutine go on and take this with it.
bool Sleep::commit(Goroutine& goroutine) {
  scheduler_ = &this_worker()->scheduler;
  goroutine_ = &goroutine;
  try {
    scheduler_->timers().add(*this, until_);
  } catch (const std::bad_alloc&) {  // without memory for a timer it looks at each turn
    scheduler_->put_behind(goroutine);
  }
  return true;
}

Clock::time_point Sleep::fire() {
  scheduler_->ready(*goroutine_);
  return kNever;
}

bool Yield::commit(Goroutine& goroutine) {
  this_worker()->scheduler.put_behind(goroutine);
  return true;
}

bool BlockingCall::commit(Goroutine& goroutine) {
  Scheduler& scheduler = this_worker()->scheduler;
  try {
    scheduler.pool().submit([this, &goroutine, &scheduler] {
      call();
      scheduler.ready(goroutine);
    });
    return true;
  } catch (...) {  // there are no threads, or no memory
    no_thread_ = std::current_exception();
    return false;
  }
}
