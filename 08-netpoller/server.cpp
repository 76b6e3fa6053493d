// 08-netpoller: an echo server that reads like 01 and costs like 04. Each connection has a
// goroutine: where that would have to wait it parks, which keeps no thread.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "common/socket/process.h"
#include "net.h"

using std::chrono::milliseconds;
constexpr milliseconds kPause{400};   // shutdown: a client that is silent for so long is closed
constexpr milliseconds kGrace{5000};  // shutdown: from SIGTERM to the end, at most

namespace {
std::atomic<bool> stop_asked = false;

struct Limits {
  milliseconds idle_timeout{0}, work{0}, trace{0};  // 0: none
  Clock::time_point deadline() const {
    return idle_timeout.count() > 0 ? Clock::now() + idle_timeout : kNever;
  }
};

Task<> echo(Conn conn, const Limits& limits) {
  for (;;) {
    conn.set_read_deadline(limits.deadline());
    const Received in = co_await conn.read();
    if (in.status != Io::ok) co_return;
    if (limits.work.count() > 0 && in.bytes().starts_with('#'))
      co_await blocking([&] { std::this_thread::sleep_for(limits.work); });
    conn.set_write_deadline(limits.deadline());
    if (co_await conn.write_all(in.bytes()) != Io::ok) co_return;
  }
}

// Until the listener's deadline passes, and then until the backlog is empty.
Task<> serve(Listener& listener, const Limits& limits) {
  OncePerSecond may_say;
  for (bool stopping = false;;) {
    NewConn next = co_await listener.accept(!stopping);
    try {
      if (next.status == Io::ok) go(echo(std::move(next.conn), limits));
    } catch (const std::bad_alloc&) {  // the connection is closed
      next = {Io::out_of_resources, Conn(), ENOMEM};
    }
    if (next.status == Io::out_of_resources) {
      if (may_say()) log_line("cannot accept: {}", error_text(next.error));
      co_await sleep_for(milliseconds(20));
    }
    if (next.status == Io::end) break;
    if (next.status != kTimedOut) continue;
    stopping = true;
    listener.set_read_deadline(kNever);
  }
  listener.desc.reset();
}

Task<> trace_every(milliseconds period, Scheduler& scheduler) {
  for (;; co_await sleep_for(period)) log_line("{}", scheduler.trace());
}

int stop_pipe = -1;  // its other end is read like a client; without memory that fails

void on_signal(int) {
  const int error = errno;
  stop_asked = true;  // before the byte that wakes the reader
  [[maybe_unused]] const auto written = ::write(stop_pipe, "!", 1);
  errno = error;
}

// The main goroutine. The server ends when it does.
Task<> run(Scheduler& scheduler, Listener& listener, Conn& signals, const Limits& limits) {
  if (limits.trace.count() > 0) go(trace_every(limits.trace, scheduler));
  const std::size_t without_clients = scheduler.unfinished();
  go(serve(listener, limits));
  announce(listener.desc->fd());
  while (!stop_asked) {
    if ((co_await signals.read()).status != Io::ok) co_await sleep_for(kPause);
  }
  listener.set_read_deadline(kPast);
  const auto grace_ends = Clock::now() + kGrace;
  while (scheduler.unfinished() > without_clients && Clock::now() < grace_ends) {
    scheduler.netpoller().limit_reads(Clock::now() + kPause);
    co_await sleep_for(kPause / 8);
  }
}
}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Limits limits;
  std::size_t workers = std::max(1u, std::thread::hardware_concurrency());
  Options options("An echo server of goroutines: each may wait, and none keeps a thread waiting.");
  options.add(endpoint);
  options.add("workers", workers, "threads that run goroutines", 10'000);
  options.add("idle-timeout", limits.idle_timeout, "closes clients that are silent for so long");
  options.add("work", limits.work, "what a request that begins with # takes, blocking");
  options.add("schedtrace", limits.trace, "how often to print what the scheduler does");
  options.parse(argc, argv);
  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    raise_descriptor_limit();
    Scheduler scheduler(workers, 16);
    Listener listener(scheduler, endpoint);
    Pipe pipe = make_pipe();
    stop_pipe = pipe.write_end.get();
    Conn signals(scheduler.netpoller().open(std::move(pipe.read_end)));
    for (const int number : unblock_stop_signals()) std::signal(number, on_signal);
    scheduler.run(run(scheduler, listener, signals, limits));
    if (const std::size_t jobs = scheduler.pool().running(); jobs > 0) {
      log_line("{} jobs are not finished", jobs);  // a thread cannot be ended; the process can
      std::_Exit(0);
    }
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
