// 07-worker-pool: an echo server whose loop never blocks.
//
// It is the server of 06, but a slow request is done by a worker, another thread, and only
// its result comes back to the loop.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "event_loop.h"

namespace {

constexpr std::size_t kMostThreads = 10'000;  // Go's default (debug.SetMaxThreads)

EventLoop* loop_to_stop = nullptr;

// Acts once: at a second signal the loop may be gone.
void on_signal(int) {
  for (const int number : {SIGINT, SIGTERM}) std::signal(number, SIG_IGN);
  loop_to_stop->stop();
}

void stop_at_signals(EventLoop& loop) {
  loop_to_stop = &loop;
  for (const int number : unblock_stop_signals()) std::signal(number, on_signal);
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  std::chrono::milliseconds idle_timeout{0};
  std::chrono::milliseconds work{0};
  std::size_t workers = std::max(1u, std::thread::hardware_concurrency());
  std::size_t queue = 64;
  Options options("An echo server on an event loop, with workers for slow requests.");
  options.add(endpoint);
  options.add("idle-timeout", idle_timeout, "closes clients that are silent for that long");
  options.add("work", work, "how long a request that begins with # blocks");
  options.add("workers", workers, "threads that do slow requests", kMostThreads);
  options.add("queue", queue, "most requests that may wait for a worker");
  options.parse(argc, argv);

  const auto reply = [](Connection& conn, std::string_view result) { conn.write(result); };

  const auto on_request = [work, reply](Connection& conn) {
    const std::string_view data = conn.reader().next(conn.reader().len());
    if (!data.starts_with('#')) return conn.write(data);
    const auto job = [work, request = std::string(data)] {
      std::this_thread::sleep_for(work);
      return request;
    };
    conn.offload(job, reply);
  };

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    raise_descriptor_limit();
    Listener listener(endpoint);
    EventLoop loop(on_request, idle_timeout, workers, queue);
    stop_at_signals(loop);
    announce(listener.socket());
    loop.serve(std::move(listener));
    if (loop.unfinished_jobs() > 0) {  // a thread cannot be ended from outside; the process can
      log_line("{} jobs are not finished", loop.unfinished_jobs());
      std::_Exit(0);
    }
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
