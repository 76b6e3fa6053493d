// 06-event-loop: an echo server that does not know how it waits.
//
// The loop of 04 and 05 has become a library. What is left of the server is its handler
// for requests. This is the article's API, in C++:
//
//   eventLoop, _ := netpoll.NewEventLoop(onRequest)     EventLoop loop{on_request};
//   eventLoop.Serve(listener)                           loop.serve(std::move(listener));
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <exception>
#include <string_view>
#include <thread>
#include <utility>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "event_loop.h"

namespace {

EventLoop* loop_to_stop = nullptr;

// The grace ended a second ago, and the loop has not: a request blocks it.
void on_alarm(int) {
  log_text("1 jobs are not finished\n");
  ::_exit(0);
}

// Acts once: at a second signal the loop may be gone.
void on_signal(int) {
  for (const int number : {SIGINT, SIGTERM}) std::signal(number, SIG_IGN);
  ::alarm(6);  // in seconds; a request that blocks the loop holds up the loop's own timers
  loop_to_stop->stop();
}

void stop_at_signals(EventLoop& loop) {
  loop_to_stop = &loop;
  std::signal(SIGALRM, on_alarm);
  for (const int number : unblock_stop_signals()) std::signal(number, on_signal);
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  std::chrono::milliseconds idle_timeout{0};
  std::chrono::milliseconds work{0};
  Options options("An echo server on an event loop: one thread, and a handler for requests.");
  options.add(endpoint);
  options.add("idle-timeout", idle_timeout, "closes clients that are silent for that long");
  options.add("work", work, "how long a request that begins with # blocks");
  options.parse(argc, argv);

  const auto on_request = [work](Connection& conn) {
    const std::string_view data = conn.reader().next(conn.reader().len());
    if (data.starts_with('#')) std::this_thread::sleep_for(work);
    conn.write(data);
  };

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    raise_descriptor_limit();
    Listener listener(endpoint);
    EventLoop loop(on_request, idle_timeout);
    stop_at_signals(loop);
    announce(listener.socket());
    loop.serve(std::move(listener));
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
