// Goroutines in a test: a scheduler on a thread of its own, and pairs of connections.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "common/socket/process.h"
#include "common/testing/client.h"
#include "common/testing/outcome.h"
#include "hooks.h"
#include "net.h"

// Runs `body` as main goroutine, and fails if it does not end within patience: a wake-up
// that was lost would else be a test that never ends. (It then cannot be cleaned up.)
inline void run(std::size_t workers, const std::function<Task(Scheduler&)>& body) {
  ignore_sigpipe();
  std::promise<void> ended;
  std::thread thread([&] {
    try {
      Scheduler scheduler(workers, 2);
      scheduler.run(body(scheduler));
      if (scheduler.unfinished() > 0) fail("{} goroutines are left", scheduler.unfinished());
      ended.set_value();
    } catch (...) {
      ended.set_exception(std::current_exception());
    }
  });
  std::future<void> end = ended.get_future();
  if (end.wait_for(patience) != std::future_status::ready) {
    fmt::print("the goroutines have not ended\n");
    (void)std::fflush(stdout);
    std::_Exit(1);
  }
  thread.join();
  end.get();  // throws what the body has thrown
}

// A connection of the scheduler's, and the other end, for anybody.
struct Pair {
  explicit Pair(Scheduler& scheduler) {
    Listener listener(scheduler, {.host = "127.0.0.1", .port = 0});
    far = connect_to(local_address(listener.socket()));
    if (!wait_for(far, POLLOUT, patience)) fail("not connected");
    const bool accepted = wait_until(patience, [&] {
      if (Conn next = listener.accept_now()) near = std::make_unique<Conn>(std::move(next));
      return near != nullptr;
    });
    if (!accepted) fail("not accepted");
  }

  void send(std::string_view data) const {
    while (!data.empty()) {
      const IoResult out = write_some(far, data);
      if (out.status == Io::would_block && wait_for(far, POLLOUT, patience)) continue;
      if (out.status != Io::ok) fail("not sent");
      data.remove_prefix(out.size);
    }
  }

  std::unique_ptr<Conn> near;
  Fd far;
};

// The same, of which the number is known, and whose buffers have one size.
struct NumberedPair {
  explicit NumberedPair(Scheduler& scheduler) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) fail("socketpair");
    Fd ours(ends[0]);
    far.reset(ends[1]);
    set_non_blocking(ours);
    number = ours.get();
    near = std::make_unique<Conn>(scheduler.netpoller().open(std::move(ours)));
  }

  std::unique_ptr<Conn> near;
  Fd far;
  int number = -1;
};

// Writes until it does not take more; returns how many bytes that were.
inline std::size_t fill(const Fd& socket) {
  std::size_t size = 0;
  for (;;) {
    const IoResult out = write_some(socket, std::string(4096, 'x'));
    if (out.status != Io::ok) return size;
    size += out.size;
  }
}

// Something that happens once, and can be waited for by threads.
class Event {
 public:
  void set() { happened_ = true; }
  explicit operator bool() const { return happened_; }
  bool wait(milliseconds limit = patience) const {
    return wait_until(limit, [this] { return happened_.load(); });
  }

 private:
  std::atomic<bool> happened_ = false;
};

// Each sets the event at its end.
inline Task write_bytes(Conn& conn, std::size_t size, Status& status, Event& done) {
  status = co_await conn.write_all(std::string(size, 'x'));
  done.set();
}

inline Task read_into(Conn& conn, Status& status, Event& ended) {
  status = (co_await conn.read()).status;
  ended.set();
}

// Sets a hook, and takes it away at the end.
class Hook {
 public:
  Hook(Window window, const std::function<void()>& action) : window_(window) {
    set_hook(window, action);
  }
  ~Hook() { set_hook(window_, nullptr); }
  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;

 private:
  Window window_;
};
