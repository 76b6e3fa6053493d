// What a goroutine does: accept, read, write_all, sleep_for, yield, blocking. Each is
// co_awaited, and looks like a call that blocks. Go: net/net.go, time/sleep.go.
#pragma once

#include <future>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "scheduler.h"

constexpr std::size_t kBuffer = 16 * 1024;
#ifdef NETPOLLER_TEST  // net_test.cpp makes reads short
extern std::size_t read_size;
#else
constexpr std::size_t read_size = kBuffer;
#endif

// A buffer is borrowed from a worker, and given to the worker on which it is destroyed: a
// connection that waits for bytes has none.
struct GiveBack {
  void operator()(char* buffer) const { this_worker().spare_buffer.reset(buffer); }
};

struct Received {
  Io status;
  std::unique_ptr<char[], GiveBack> buffer;
  std::size_t size;
  std::string_view bytes() const { return {buffer.get(), size}; }
};

// A read that got less than it asked for took everything. So the next one makes no system
// call before an event: that saves every second read.
struct Read final : PollOperation {
  explicit Read(PollDesc& its) : PollOperation(its, kRead) {}
  Io call() noexcept override {
    if (std::exchange(desc.drained, false)) return Io::would_block;
    auto& spare = this_worker().spare_buffer;
    buffer.reset(spare ? spare.release() : new (std::nothrow) char[kBuffer]);
    if (!buffer) return Io::out_of_resources;
    const IoResult in = read_some(desc.fd(), {buffer.get(), read_size});
    desc.drained = in.status == Io::ok && in.size < read_size && !desc.more;
    if (in.status != Io::ok) buffer.reset();
    size = in.size;
    return in.status;
  }
  Received await_resume() { return {status, std::move(buffer), size}; }
  std::unique_ptr<char[], GiveBack> buffer;
  std::size_t size = 0;
};

struct WriteAll final : PollOperation {
  WriteAll(PollDesc& its, std::string_view data) : PollOperation(its, kWrite), left(data) {}
  Io call() noexcept override {
    while (!left.empty()) {
      const IoResult out = write_some(desc.fd(), left);
      if (out.status != Io::ok) return out.status;
      left.remove_prefix(out.size);
    }
    return Io::ok;
  }
  Io await_resume() const { return status; }
  std::string_view left;
};

struct Disown {
  void operator()(PollDesc* desc) const {
    desc->close();
    desc->leave(PollDesc::kOwner);
  }
};

// A connection, closed by its destructor. One goroutine at a time reads, one writes.
struct Conn {
  explicit Conn(PollDesc* its = nullptr) : desc(its) {}
  Read read() { return Read(*desc); }  // co_await: a Received of at most 16 KiB
  // co_await: the Io, when the socket has taken all of it. `data` has to stay until then.
  WriteAll write_all(std::string_view data) { return {*desc, data}; }
  // Any thread, while the Conn exists: see PollDesc. kNever: no deadline.
  void close() { desc->close(); }
  void set_read_deadline(Clock::time_point at) { desc->set_deadline(kRead, at); }
  void set_write_deadline(Clock::time_point at) { desc->set_deadline(kWrite, at); }
  std::unique_ptr<PollDesc, Disown> desc;
};

struct NewConn {
  Io status;  // Io::end: no client waits
  Conn conn;
  int error;  // the errno behind out_of_resources
};

struct Accept final : PollOperation {
  Accept(PollDesc& its, bool waits) : PollOperation(its, kRead), wait(waits) {}
  Io call() noexcept override try {
    Accepted next = accept_from(desc.fd(), Mode::non_blocking);
    error = next.error;
    if (next.status == Io::would_block && !wait) return Io::end;
    if (next.status == Io::ok)
      conn = Conn(this_worker().scheduler->netpoller().open(std::move(next.connection)));
    return next.status;
  } catch (const std::exception&) {
    error = ENOMEM;
    return Io::out_of_resources;
  }
  NewConn await_resume() { return {status, std::move(conn), error}; }
  const bool wait;
  Conn conn;
  int error = 0;
};

struct Listener : Conn {
  // Throws StartupError: the port is in use, forbidden, or not ours.
  Listener(Scheduler& scheduler, const Endpoint& endpoint)
      : Conn(scheduler.netpoller().open(
            listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking))) {}
  Accept accept(bool wait = true) const { return {*desc, wait}; }  // co_await: a NewConn
};

// co_await sleep_for(20ms)
struct Sleep final : Operation, private Timer {
  explicit Sleep(std::chrono::milliseconds duration) : until(Clock::now() + duration) {}
  bool attempt() noexcept override { return Clock::now() >= until; }
  // Once the timer is added it may fire, and the goroutine destroy this operation. Without
  // memory for a timer the goroutine looks at the clock in each round.
  bool commit(Goroutine& its) noexcept override {
    Scheduler& here = *(scheduler = this_worker().scheduler);
    goroutine = &its;
    if (!here.add_timer(*this, until)) here.make_ready(its, false);
    return true;
  }
  void fire() noexcept override { scheduler->make_ready(*goroutine); }
  const Clock::time_point until;
  Scheduler* scheduler = nullptr;
  Goroutine* goroutine = nullptr;
};
inline Sleep sleep_for(std::chrono::milliseconds duration) { return Sleep(duration); }

// Parks once. park(goroutine) arranges for it to be made ready, or returns false.
template <typename Function>
struct Park final : Operation {
  explicit Park(Function its) : park(std::move(its)) {}
  bool attempt() noexcept override { return std::exchange(tried, true); }
  bool commit(Goroutine& goroutine) noexcept override { return park(goroutine); }
  Function park;
  bool tried = false;
};

// co_await yield(): all others that are ready have a turn first.
inline auto yield() {
  return Park([](Goroutine& goroutine) {
    this_worker().scheduler->make_ready(goroutine, false);
    return true;
  });
}

// co_await blocking(fn): a thread of the blocking pool calls fn(). Returns what that returns,
// or throws what it throws, or why there is no thread. Go does so, unasked, with each system
// call that blocks: another thread gets the P (entersyscall, retake in runtime/proc.go).
template <typename Function>
Task<std::invoke_result_t<Function>> blocking(Function function) {
  Scheduler& scheduler = *this_worker().scheduler;
  std::packaged_task<std::invoke_result_t<Function>()> task(std::move(function));
  std::exception_ptr refused;
  co_await Park([&](Goroutine& goroutine) {
    const std::exception_ptr error = scheduler.pool().submit([&] {
      task();
      scheduler.make_ready(goroutine);
    });
    if (error) refused = error;  // if not, the frame may be gone by now
    return !error;
  });
  if (refused) std::rethrow_exception(refused);
  co_return task.get_future().get();
}
