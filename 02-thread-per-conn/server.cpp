// 02-thread-per-conn: an echo server with a thread for each connection.
//
// The code that serves a client is that of 01, unchanged. It still sleeps in read and
// in write, but in a thread of its own. The main thread only accepts.

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>
#include <system_error>
#include <thread>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

namespace {

using std::chrono::milliseconds;

// Writes all of `data`. One write may take less, if a signal interrupts it.
// Returns false if the client is gone.
bool write_all(const Fd& connection, std::string_view data) {
  while (!data.empty()) {
    const IoResult out = write_some(connection, data);
    if (out.status != Io::ok) return false;
    data.remove_prefix(out.size);
  }
  return true;
}

// Echoes until the client has finished sending (Io::end) or is gone. At the end
// nothing is pending, because each read is written back before the next.
void echo(const Fd& connection) {
  std::array<char, 16 * 1024> buffer;
  for (;;) {
    const IoResult in = read_some(connection, buffer);
    if (in.status != Io::ok) return;
    if (!write_all(connection, {buffer.data(), in.size})) return;
  }
}

// Counts the connections that may still be opened, the free places. The main thread takes
// a place before it accepts. The thread that served the connection gives it back at its end.
class Places {
 public:
  explicit Places(std::size_t count) : free_(count) {}

  void take() {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [this] { return free_ > 0; });
    --free_;
  }

  void give_back() {
    const std::lock_guard lock(mutex_);
    ++free_;
    freed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable freed_;
  std::size_t free_;
};

// Waits while descriptors, memory or threads are short: 5 ms, and twice as long after each
// further failure, up to 1 s (as net/http/server.go does in Go).
class Backoff {
 public:
  void wait(const char* what, int error) {
    if (may_say_()) log_line("{}: {}; existing connections are served", what, error_text(error));
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, kLongest);
  }

  void reset() { pause_ = kShortest; }

 private:
  static constexpr milliseconds kShortest{5};
  static constexpr milliseconds kLongest{1000};
  milliseconds pause_ = kShortest;
  OncePerSecond may_say_;
};

// Starts a thread that owns the connection, serves it, and gives the place back.
// Returns 0, or the errno of pthread_create. The caller then still owns the connection.
//
// The thread is detached: the main thread does not wait for its end, so it keeps no list
// of threads, and the system frees the stack when the thread returns.
int start_thread(Fd& connection, const std::shared_ptr<Places>& places) {
  try {
    std::thread([fd = connection.get(), places] {
      Fd owned(fd);
      echo(owned);
      owned.reset();  // before its place is free
      places->give_back();
    }).detach();
    connection.release();  // only now: without a thread, the caller keeps it
    return 0;
  } catch (const std::system_error& error) {
    return error.code().value();
  } catch (const std::bad_alloc&) {
    return ENOMEM;
  }
}

void serve(const Fd& listener, std::size_t max_connections) {
  const auto places = std::make_shared<Places>(max_connections);
  Backoff backoff;
  for (;;) {
    places->take();
    Accepted next = accept_from(listener);
    while (next.status != Io::ok) {
      backoff.wait("cannot accept", next.error);
      next = accept_from(listener);
    }
    while (const int error = start_thread(next.connection, places)) {
      backoff.wait("cannot start a thread", error);
    }
    backoff.reset();
  }
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  std::size_t max_connections = 10'000;
  Options options("An echo server with a thread for each connection.");
  options.add(endpoint);
  options.add("max-connections", max_connections,
              "connections, and so threads, at once; others wait in the backlog");
  options.parse(argc, argv);

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    die_of_stop_signals();
    raise_descriptor_limit();
    const Fd listener = listen_on(resolve(endpoint.host, endpoint.port));
    announce(listener);
    serve(listener, max_connections);
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
