// 08-netpoller: an echo server that reads like 01 and costs like 04.
//
// A goroutine for each connection: it reads, and writes what it has read. Where it would
// have to wait it parks, which costs no thread. This is Go's:
//
//   for {                                        for (;;)
//     conn, _ := listener.Accept()                 go(echo(co_await listener.accept()));
//     go echo(conn)
//   }
//
// and the rest is about ends: of descriptors, of patience, of the server.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>
#include <thread>
#include <utility>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "net.h"
#include "schedtrace.h"
#include "scheduler.h"
#include "sessions.h"

namespace {

using std::chrono::milliseconds;

constexpr milliseconds kTick{200};    // from one look at which connections can go to the next
constexpr milliseconds kGrace{5000};  // from SIGTERM to the end, at most
constexpr std::size_t kBlockingThreads = 16;
constexpr std::size_t kMostThreads = 10'000;  // Go's default (debug.SetMaxThreads)

struct Limits {
  milliseconds idle_timeout{0};
  milliseconds work{0};
  milliseconds trace{0};
};

Task work_on(milliseconds work) {
  if (work > milliseconds(0)) co_await blocking([work] { std::this_thread::sleep_for(work); });
}

Task echo(Conn conn, Sessions& sessions, const Limits& limits) {
  Session session(sessions, conn);
  for (;;) {
    session.stirs();
    if (limits.idle_timeout > milliseconds(0))
      conn.set_read_deadline(Clock::now() + limits.idle_timeout);
    const Received request = co_await conn.read();
    if (request.status == Status::timed_out && conn.underway().in) continue;  // bytes came in time
    if (request.status != Status::ok) co_return;
    if (request.bytes().starts_with('#')) co_await work_on(limits.work);
    if (limits.idle_timeout > milliseconds(0))  // for all of it: 16 KiB at most
      conn.set_write_deadline(Clock::now() + limits.idle_timeout);
    if (co_await conn.write_all(request.bytes()) != Status::ok) co_return;
  }
}

// Without memory for a goroutine the connection is closed.
void start(Conn conn, Sessions& sessions, const Limits& limits) {
  try {
    go(echo(std::move(conn), sessions, limits));
  } catch (const std::bad_alloc&) {
    static OncePerSecond may_say;
    if (may_say()) log_line("a connection was refused: no memory for its goroutine");
  }
}

// Go: http.Server.Serve has the same answer to an accept that fails.
Task serve(Listener& listener, Sessions& sessions, const Limits& limits) {
  OncePerSecond may_say;
  milliseconds pause{5};
  for (;;) {
    AcceptResult next = co_await listener.accept();
    if (next.status == Status::ok) {
      start(std::move(next.conn), sessions, limits);
      pause = milliseconds(5);
    } else if (next.status == Status::out_of_resources) {
      if (may_say()) log_line("cannot accept: {}", error_text(next.error));
      co_await sleep_for(pause);
      pause = std::min(2 * pause, kTick);
    } else {
      co_return;
    }
  }
}

// A signal is a byte that is read from a pipe, like those of any client; and a flag, because
// without memory a read fails.
int stop_pipe = -1;
std::atomic<bool> stop_asked = false;

void on_signal(int) {
  const int error = errno;
  stop_asked = true;  // first: the byte has it looked at
  [[maybe_unused]] const auto written = ::write(stop_pipe, "!", 1);
  errno = error;
}

// The server's main goroutine: starts it, waits for a signal, and ends it. Nobody new is let
// in then, but for the backlog; connections with bytes on the way are served; quiet ones are
// ended by a deadline that has passed.
Task run_server(Listener& listener, Sessions& sessions, Conn& signals, const Limits& limits,
                Scheduler& scheduler) {
  Task accepting = serve(listener, sessions, limits);  // there is memory for it: say so
  announce(listener.socket());
  go(std::move(accepting));
  while (!stop_asked) {
    if ((co_await signals.read()).status != Status::ok) co_await sleep_for(kTick);
  }
  // The last two ticks are for those that are closed then.
  const auto grace_ends = Clock::now() + kGrace - 2 * kTick;
  while (Clock::now() < grace_ends) {
    Conn conn = listener.accept_now();
    if (!conn) break;
    start(std::move(conn), sessions, limits);
    co_await yield();
  }
  listener.close();
  co_await yield();  // `serve` ends first: if that was all, there is nobody to wait for
  while (scheduler.unfinished() > 1 && Clock::now() + kTick < grace_ends) {
    co_await sleep_for(kTick);
    sessions.end_the_quiet();
  }
  sessions.close_all();
  const auto end = Clock::now() + 2 * kTick;
  while (scheduler.unfinished() > 1 && Clock::now() < end) co_await sleep_for(milliseconds(1));
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Limits limits;
  std::size_t workers = std::max(1u, std::thread::hardware_concurrency());
  Options options("An echo server of goroutines: each waits, and none keeps a thread waiting.");
  options.add(endpoint);
  options.add("workers", workers, "threads that run goroutines", kMostThreads);
  options.add("idle-timeout", limits.idle_timeout, "closes clients that are silent for so long");
  options.add("work", limits.work, "what a request that begins with # takes, blocking");
  options.add("schedtrace", limits.trace, "says so often what the scheduler does");
  options.parse(argc, argv);

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    raise_descriptor_limit();
    Scheduler scheduler(workers, kBlockingThreads);
    Listener listener(scheduler, endpoint);
    Pipe pipe = make_pipe();
    stop_pipe = pipe.write_end.get();
    Conn signals(scheduler.netpoller().open(std::move(pipe.read_end)));
    if (!signals) throw StartupError("cannot watch a pipe: no room");
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);
    const SchedTrace trace(scheduler, limits.trace);
    Sessions sessions;
    scheduler.run(run_server(listener, sessions, signals, limits, scheduler));
    if (scheduler.unfinished() > 0) {  // a thread cannot be ended from outside; the process can
      log_line("{} goroutines are not finished", scheduler.unfinished());
      std::_Exit(0);
    }
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
