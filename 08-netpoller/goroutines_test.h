// Goroutines in a test: a scheduler on a thread of its own, pairs of connections, and events.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "common/socket/process.h"
#include "common/testing/client.h"
#include "common/testing/outcome.h"
#include "net.h"

using std::chrono::microseconds;

// Runs `body` as the main goroutine, and fails if it does not end within patience: otherwise
// a lost wake-up would be a test that never ends. (The threads cannot be ended then.)
inline void run(std::size_t workers, const std::function<Task<>(Scheduler&)>& body,
                microseconds watch = 1ms) {
  ignore_sigpipe();
  std::promise<void> ended;
  std::thread thread([&] {
    try {
      Scheduler scheduler(workers, 2, watch);
      scheduler.run(body(scheduler));
      if (scheduler.unfinished() > 0) fail("{} goroutines are left", scheduler.unfinished());
      ended.set_value();
    } catch (...) {
      ended.set_exception(std::current_exception());
    }
  });
  std::future<void> end = ended.get_future();
  if (end.wait_for(patience) != std::future_status::ready) {
    fmt::print("{}: the goroutines have not ended\n",
               doctest::getContextOptions()->currentTest->m_name);
    (void)std::fflush(stdout);
    std::_Exit(1);
  }
  thread.join();
  end.get();  // throws what the body threw
}

// A connection of the scheduler, and the other end of it, which any thread may use.
struct Pair {
  Conn near;
  Fd far;

  void send(std::string_view data) const {
    while (!data.empty()) {
      const IoResult out = write_some(far, data);
      if (out.status == Io::would_block && wait_for(far, POLLOUT, patience)) continue;
      if (out.status != Io::ok) fail("not sent");
      data.remove_prefix(out.size);
    }
  }
};

inline Pair tcp_pair(Scheduler& scheduler) {
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  Fd far = connect_to(local_address(listener));
  Accepted accepted = accept_from(listener, Mode::non_blocking);
  if (!wait_for(far, POLLOUT, patience)) fail("not connected");
  return {Conn(scheduler.netpoller().open(std::move(accepted.connection))), std::move(far)};
}

// A pair whose buffers have a fixed size.
inline Pair unix_pair(Scheduler& scheduler) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) fail("socketpair");
  Fd near(ends[0]);
  Fd far(ends[1]);
  for (const Fd* end : {&near, &far}) set_non_blocking(*end);
  return {Conn(scheduler.netpoller().open(std::move(near))), std::move(far)};
}

// Writes until the socket is full; returns the number of bytes.
inline std::size_t fill(const Fd& socket) {
  std::size_t size = 0;
  for (;;) {
    const IoResult out = write_some(socket, std::string(4096, 'x'));
    if (out.status != Io::ok) return size;
    size += out.size;
  }
}

// Happens once. Threads and goroutines (until) wait for it.
class Event {
 public:
  void set() { happened_ = true; }
  explicit operator bool() const { return happened_; }
  bool wait(milliseconds limit = patience) const {
    return wait_until(limit, [this] { return happened_.load(); });
  }
  // Keeps the thread, and the processor, until another thread sets the event.
  bool spin(milliseconds limit) const {
    const auto end = Clock::now() + limit;
    while (!happened_ && Clock::now() < end) std::this_thread::yield();
    return happened_;
  }

 private:
  std::atomic<bool> happened_ = false;
};

inline Task<> until(const Event& event) {
  while (!event) co_await sleep_for(1ms);
}

inline Task<> until_alone(Scheduler& scheduler) {
  while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
}

inline Task<> read_into(Conn& conn, Io& status, Event& ended) {
  status = (co_await conn.read()).status;
  ended.set();
}

inline Task<> write_bytes(Conn& conn, std::size_t size, Io& status, Event& ended) {
  status = co_await conn.write_all(std::string(size, 'x'));
  ended.set();
}

// Runs `body` in a child process, which is killed if it takes longer than patience. `body`
// starts no thread: ThreadSanitizer does not allow that after a fork.
struct Child {
  int status;  // waitpid(2)
  std::string errors;
};
inline Child in_child(const std::function<void()>& body) {
  Pipe errors = make_pipe();
  const pid_t pid = ::fork();
  if (pid < 0) fail("fork");
  if (pid == 0) {
    ::dup2(errors.write_end.get(), STDERR_FILENO);
    for (const int number : {SIGABRT, SIGALRM}) std::signal(number, SIG_DFL);  // not doctest's
    ::alarm(static_cast<unsigned>(patience / 1s));
    body();
    ::_exit(0);
  }
  Child child{};
  if (::waitpid(pid, &child.status, 0) != pid) fail("waitpid");
  std::array<char, 4096> bytes;
  child.errors.assign(bytes.data(), read_some(errors.read_end, bytes).size);
  return child;
}
