// The event loop of 06 and 07 from inside: callbacks, timers, and handlers that misbehave. Each of
// the two chapters compiles this file with its own headers.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "common/testing/loop_under_test.h"

namespace {

void echo(Connection& conn) { conn.write(conn.reader().next(conn.reader().len())); }

// The share of a core that this process (the loop, while we sleep) uses in `window`.
double cpu_percent(milliseconds window) {
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(window);
  return 100.0 * double(std::clock() - before) / CLOCKS_PER_SEC /
         std::chrono::duration<double>(window).count();
}

std::size_t open_descriptors() {
  if (!std::filesystem::exists("/proc/self/fd")) skip("no /proc/self/fd here");
  return static_cast<std::size_t>(std::distance(
      std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator()));
}

// While it lives, the process gets no more memory.
class NoMoreMemory {
 public:
  NoMoreMemory() {
    ::getrlimit(RLIMIT_AS, &before_);
    const rlimit none{0, before_.rlim_max};
    ::setrlimit(RLIMIT_AS, &none);
  }
  ~NoMoreMemory() { ::setrlimit(RLIMIT_AS, &before_); }
  NoMoreMemory(const NoMoreMemory&) = delete;
  NoMoreMemory& operator=(const NoMoreMemory&) = delete;

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("post: another thread posts: the callback runs on the loop's thread without delay") {
  holds([] {
    LoopUnderTest server(echo);
    std::thread::id ran_on;
    const auto start = Clock::now();
    for (int i = 0; i < 20; ++i) server.run([&] { ran_on = std::this_thread::get_id(); });
    CHECK(ran_on == server.thread());
    CHECK(ms_since(start) < 200);    // not one per tick
    CHECK(cpu_percent(200ms) < 10);  // then the loop sleeps again
  });
}

TEST_CASE("post-order: four threads post: no callback is lost, those of a thread run in order") {
  holds([] {
    LoopUnderTest server(echo);
    constexpr int kThreads = 4;
    constexpr int kCallbacks = 5000;
    std::array<std::atomic<int>, kThreads> next{};
    bool in_order = true;
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      // Posts two, and two more when these have run. So the loop is woken often, and other
      // threads post while it wakes.
      threads.emplace_back([&, t] {
        const auto give_up = Clock::now() + patience;
        for (int i = 0; i < kCallbacks && Clock::now() < give_up; ++i) {
          server.loop().post([&, t, i] { in_order = (next[t]++ == i) && in_order; });
          while (i % 2 == 1 && next[t] <= i && Clock::now() < give_up) std::this_thread::yield();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    server.run([] {});
    CHECK(in_order);
    CHECK(std::count(next.begin(), next.end(), kCallbacks) == kThreads);
  });
}

TEST_CASE("post-nested: a callback posts another: it runs") {
  holds([] {
    LoopUnderTest server(echo);
    std::promise<void> done;
    server.loop().post([&] { server.loop().post([&] { done.set_value(); }); });
    CHECK(done.get_future().wait_for(patience) == std::future_status::ready);
  });
}

TEST_CASE("timers-order: three timers: they run in the order in which they are due, none early") {
  holds([] {
    LoopUnderTest server(echo);
    std::vector<int> ran;
    std::promise<void> last;
    bool early = false;
    server.run([&] {
      const auto start = Clock::now();
      for (const int delay : {60, 20, 40}) {
        server.loop().run_after(milliseconds(delay), [&, delay, start] {
          early = early || ms_since(start) < delay;
          ran.push_back(delay);
          if (ran.size() == 3) last.set_value();
        });
      }
    });
    REQUIRE(last.get_future().wait_for(patience) == std::future_status::ready);
    CHECK(ran == std::vector<int>{20, 40, 60});
    CHECK(!early);
  });
}

TEST_CASE("timer-sooner: a new timer is due before all others: the wait is shortened") {
  holds([] {
    LoopUnderTest server(echo);
    server.run([&] { server.loop().run_after(1h, [] {}); });
    std::promise<void> ran;
    server.run([&] { server.loop().run_after(10ms, [&] { ran.set_value(); }); });
    CHECK(ran.get_future().wait_for(patience) == std::future_status::ready);
  });
}

TEST_CASE("timer-round-up: a timer is due in a fraction of a millisecond: the wait is rounded up") {
  Timers timers;
  CHECK_FALSE(timers.until_next().has_value());
  const auto due = Clock::now() + std::chrono::microseconds(50'900);
  timers.add(due, [] {});
  const auto wait = timers.until_next();
  REQUIRE(wait.has_value());
  CHECK(Clock::now() + *wait >= due);
}

TEST_CASE("timer-hour: a timer is due in 30 days: the wait ends after an hour") {
  Timers timers;
  timers.add(Clock::now() + 24h * 30, [] {});  // more milliseconds than an int holds
  CHECK(timers.until_next() == milliseconds(1h));
}

TEST_CASE("timer-cancelled: a timer is cancelled: it does not run") {
  holds([] {
    LoopUnderTest server(echo);
    bool ran = false;
    std::promise<void> end;
    server.run([&] {
      EventLoop& loop = server.loop();
      const Timer first = loop.run_after(20ms, [&] { ran = true; });
      loop.cancel(first);
      loop.cancel(first);
      // Two timers due in one turn; the first cancels both.
      auto second = std::make_shared<std::array<Timer, 2>>();
      (*second)[0] = loop.run_after(10ms, [&loop, second] {
        loop.cancel((*second)[0]);
        loop.cancel((*second)[1]);
      });
      (*second)[1] = loop.run_after(10ms, [&] { ran = true; });
      loop.run_after(50ms, [&] { end.set_value(); });
      std::this_thread::sleep_for(30ms);  // until both are due
    });
    REQUIRE(end.get_future().wait_for(patience) == std::future_status::ready);
    CHECK(!ran);
  });
}

TEST_CASE("timer-always-due: a timer is always due again: connections are served") {
  holds([] {
    std::function<void()> again;
    std::atomic<bool> stop = false;
    LoopUnderTest server(echo);
    again = [&] {
      if (!stop) server.loop().run_after(0ms, again);
    };
    server.run(again);
    Client(server.address()).echo("hello");
    stop = true;
  });
}

TEST_CASE(
    "handler-leaves-bytes: a handler leaves bytes: it is called again only when more have come") {
  holds([] {
    std::atomic<int> calls = 0;
    LoopUnderTest server([&](Connection& conn) {
      ++calls;
      if (conn.reader().peek(100).ends_with('\n')) echo(conn);
    });
    Client client(server.address());
    client.send("he");
    CHECK(wait_until(patience, [&] { return calls == 1; }));
    CHECK(cpu_percent(200ms) < 10);
    CHECK(calls == 1);
    client.send("llo\n");
    CHECK(client.receive(6) == "hello\n");
    CHECK(calls == 2);
  });
}

TEST_CASE("reader: more is asked of a reader than it has: it gives what it has") {
  holds([] {
    std::string seen;
    LoopUnderTest server([&](Connection& conn) {
      Reader& in = conn.reader();
      const auto see = [&](std::string_view bytes) { seen.append(bytes).append("|"); };
      see(in.peek(2));
      see(in.next(3));
      in.skip(1);
      see(std::to_string(in.len()));
      see(in.peek(100));
      see(in.next(100));
      see(in.next(100));
      in.skip(1);
      conn.write(std::to_string(in.len()));
    });
    Client client(server.address());
    client.send("abcdef");
    CHECK(client.receive(1) == "0");
    CHECK(seen == "ab|abc|2|ef|ef||");
  });
}

TEST_CASE("full-buffer: a handler leaves a full buffer: its connection is closed") {
  holds([] {
    LoopUnderTest server([](Connection&) {});
    Client client(server.address());
    client.send(std::string(64 * 1024 - 1, 'x'));
    CHECK(!client.is_closed_within(100ms));
    client.send("x");
    CHECK(client.is_closed_within(patience));
  });
}

TEST_CASE(
    "full-buffer-taken: a handler answers before it takes a full buffer: all bytes are echoed") {
  holds([] {
    constexpr std::size_t kFull = 64 * 1024;
    LoopUnderTest server([](Connection& conn) {
      if (conn.reader().len() < kFull) return;
      conn.write("all: ");  // nothing has been taken yet
      echo(conn);
    });
    Client client(server.address());
    const std::string request(kFull, 'x');
    client.send(request);
    CHECK(client.receive(5 + kFull) == "all: " + request);
  });
}

TEST_CASE(
    "no-memory-for-output: a handler writes to another connection, no memory: only the other is "
    "closed") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
#ifdef __APPLE__
    skip("RLIMIT_AS limits nothing here");
#endif
    const std::string much(100 << 20, 'x');  // more than a thread has reserved
    std::weak_ptr<Connection> other;
    LoopUnderTest server([&](Connection& conn) {
      if (conn.reader().peek(1) == "b") other = conn.weak_from_this();
      if (conn.reader().peek(1) == "a") {
        const NoMoreMemory none;
        other.lock()->write(much);  // what the socket does not take must be stored
      }
      echo(conn);
    });
    Client a(server.address());
    Client b(server.address());
    b.echo("b");
    a.echo("a");
    CHECK(b.receive_until_end().size() < much.size());
    a.echo("still here");
  });
}

TEST_CASE("handler-throws: a handler throws: its connection is closed, and no other") {
  holds([] {
    LoopUnderTest server([](Connection& conn) {
      if (conn.reader().peek(1) == "e") throw std::runtime_error("as the test wants it");
      if (conn.reader().peek(1) == "7") throw 7;
      echo(conn);
    });
    Client other(server.address());
    for (const char* request : {"exception", "7"}) {
      Client client(server.address());
      client.send(request);
      CHECK(client.is_closed_within(patience));
      other.echo("still here");
    }
  });
}

TEST_CASE("close-in-own-handler: a handler closes its connection: later calls have no effect") {
  holds([] {
    std::atomic<bool> still_there = false;
    LoopUnderTest server([&](Connection& conn) {
      const auto self = conn.weak_from_this();
      conn.close();
      conn.close();
      still_there = !self.expired();
      if (still_there) conn.write(conn.reader().next(100));
    });
    Client client(server.address());
    client.send("hello");
    CHECK(client.receive_until_end().empty());
    CHECK(still_there);
  });
}

TEST_CASE(
    "close-in-batch: a handler closes another connection of the batch: it is not handled, its "
    "number stays taken") {
  holds([] {
    std::map<char, std::weak_ptr<Connection>> known;
    bool armed = false;
    std::string called;
    std::size_t before = 0;
    std::size_t after = 0;
    LoopUnderTest server([&](Connection& conn) {
      const char name = conn.reader().peek(1)[0];
      known[name] = conn.weak_from_this();
      if (armed && name != 'c') {
        called += name;
        before = open_descriptors();
        known[name == 'a' ? 'b' : 'a'].lock()->close();
        after = open_descriptors();
      }
      echo(conn);
    });
    Client a(server.address());
    Client b(server.address());
    a.echo("a");
    b.echo("b");
    std::unique_ptr<Client> c;
    server.run([&] {  // while the loop is busy here, all three become ready
      armed = true;
      a.send("a");
      b.send("b");
      c = std::make_unique<Client>(server.address());
    });
    c->echo("c");
    REQUIRE(called.size() == 1);  // the other was closed before its turn
    Client& survivor = called == "a" ? a : b;
    Client& victim = called == "a" ? b : a;
    CHECK(survivor.receive(1) == called);
    CHECK(victim.is_closed_within(patience));
    CHECK(after == before);  // the descriptor stays taken until the batch is done
  });
}

TEST_CASE("pending-output: 64 KiB wait to be sent: no request is read") {
  holds([] {
    std::atomic<int> calls = 0;
    LoopUnderTest server([&](Connection& conn) {
      ++calls;
      conn.reader().skip(conn.reader().len());
      conn.write(std::string(16 << 20, 'x'));
    });
    Client client(server.address());
    client.send("more");
    CHECK(wait_until(patience, [&] { return calls == 1; }));
    client.send("more");
    server.run([] {});  // the handler has returned
    CHECK(cpu_percent(300ms) < 10);
    CHECK(calls == 1);
    client.receive(16 << 20);
    client.receive(16 << 20);
    CHECK(calls == 2);
  });
}

TEST_CASE(
    "idle-timeout-blocked-loop: a handler blocks the loop, bytes come in time: the client is not "
    "closed") {
  holds([] {
    LoopUnderTest server(echo, 300ms);
    Client client(server.address());
    client.echo("hello");
    server.run([&] {
      std::this_thread::sleep_for(200ms);
      client.send("I am not idle");
      std::this_thread::sleep_for(300ms);
    });
    CHECK(client.receive(13) == "I am not idle");
  });
}

TEST_CASE(
    "idle-timeout-renewed: a client sends before its timeout: it is closed one timeout after "
    "that") {
  holds([] {
    LoopUnderTest server(echo, 600ms);
    Client client(server.address());
    std::this_thread::sleep_for(300ms);
    client.echo("I am not idle");
    CHECK_FALSE(client.is_closed_within(400ms));  // 700 ms after it connected
    CHECK(client.is_closed_within(patience));
  });
}

TEST_CASE("stop-before-serve: stop before serve: serve returns at once") {
  holds([] {
    Listener listener({.host = "127.0.0.1", .port = 0});
    EventLoop loop = make_loop(echo);
    loop.stop();
    const auto start = Clock::now();
    loop.serve(std::move(listener));
    CHECK(ms_since(start) < 1000);
  });
}

TEST_CASE(
    "wrong-thread: a function of the loop's thread is called on another: the program aborts") {
  holds([] {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      Fd nowhere(::dup2(::open("/dev/null", O_WRONLY), STDERR_FILENO));
      std::signal(SIGABRT, SIG_DFL);  // doctest would report it
      EventLoop loop = make_loop(echo);
      std::thread([&] { loop.run_after(1s, [] {}); }).join();
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGABRT);
  });
}
