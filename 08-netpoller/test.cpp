// 08-netpoller: what is special about this chapter. The server's other tests are in
// common/testing/chapter_test.cpp: the battery with ten thousand clients on two workers, shutdown,
// idle timeout, order and slow handlers.
#include <algorithm>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/chapter.h"
#include "common/testing/faults.h"
#include "common/testing/swarm.h"

namespace {

// With `workers` workers, and more flags.
Command server_with(const char* workers, const std::vector<std::string>& flags = {}) {
  return Command{.argv = {SERVER, "--workers", workers}, .environment = {}}.with(flags);
}

}  // namespace

const Subject kServer{.command = server_with("2"),
                      .clients = 10'000,
                      .short_reads = false};  // a short read has taken everything: net.h

TEST_CASE("stop-out-of-memory: SIGTERM, out of memory: the server ends") {
  holds([] {
    // Every read from the 200th on fails; those before it may be the loader's.
    ServerProcess server(under_strace(server_with("1"), {"read:error=ENOMEM:when=200+"}));
    const auto is_refused = [&] {
      Client client(server.address());
      client.send("hello");
      CHECK(client.hears_within(patience));
      return client.is_closed_within(20ms);
    };
    CHECK(wait_until(patience, is_refused));
    server.signal(SIGTERM);
    expect_exit_0(server, 2s);
  });
}

TEST_CASE("stop-backlog: SIGTERM, clients in the backlog: they are served") {
  holds([] {
    // When the server continues, the clients and the signal have arrived. The last client's
    // request is a slow one.
    ServerProcess server(server_with("1", {"--work", "1s"}));
    server.freeze();
    auto clients = connect_clients(server.address(), 50);
    const auto request = [&](const Client& client) {
      return &client == &clients.back() ? "#ello" : "hello";
    };
    for (Client& client : clients) client.send(request(client));
    server.signal(SIGTERM);
    server.thaw();
    for (Client& client : clients) CHECK(client.receive_until_end() == request(client));
    expect_exit_0(server, 2s);
    CHECK(server.errors().empty());
  });
}

TEST_CASE("silent-workers: a silent client, four workers: no thread runs for four seconds") {
  holds([] {
    ServerProcess server(server_with("4"));
    Client client(server.address());
    client.echo("hello");
    std::this_thread::sleep_for(1s);  // until all workers sleep
    const std::size_t before = server.context_switches();
    if (before == 0) skip("/proc does not count context switches");
    std::this_thread::sleep_for(4s);
    const std::size_t switches = server.context_switches() - before;
    CAPTURE(switches);
    // A sleeper that checks every millisecond: 4,000. ThreadSanitizer's own thread: 40.
    CHECK(switches <= (kThreadSanitizer ? 80U : 0U));
    client.echo("hello");
  });
}

TEST_CASE("one-wake-up: one client after a pause, two workers: a message wakes only one of them") {
  holds([] {
    ServerProcess server(server_with("2"));
    Client client(server.address());
    client.echo("hello");
    std::this_thread::sleep_for(300ms);  // until no sleeper checks
    const std::size_t before = server.context_switches();
    if (before == 0) skip("/proc does not count context switches");
    const auto start = Clock::now();
    for (int i = 0; i < 2000; ++i) client.echo("x");
    // The poller sleeps once for each message. The other worker checks once a millisecond.
    const auto allowed = 2000 * 1.2 + 2 * ms_since(start);
    const std::size_t switches = server.context_switches() - before;
    CAPTURE(switches);
    CHECK(static_cast<double>(switches) < allowed);
  });
}

TEST_CASE(
    "many-at-once-18000: eighteen thousand clients at once, on one, two and four workers: each "
    "gets its own bytes") {
  holds([] {
    for (const char* workers : {"1", "2", "4"})
      battery::many_at_once({.command = server_with(workers), .clients = 18'000});
  });
}

TEST_CASE("slow-handler-one-worker: a slow request on one worker: other clients are not delayed") {
  holds({.command = server_with("1"), .clients = 1000}, battery::slow_handler);
}

TEST_CASE(
    "no-blocking-thread: no thread for a blocking call: its connection is closed, and no other") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue needs threads of its own");
    const Command command = server_with("1", {"--work", "1ms"});
    ServerProcess server(under_strace(command, {"?clone,?clone3:error=EAGAIN"}));
    Client client(server.address());
    Client other(server.address());
    client.send("#");
    CHECK(client.is_closed_within(patience));
    CHECK(server.errors().starts_with("a goroutine has ended: "));
    other.echo("hello");
  });
}

TEST_CASE("no-work: a request that begins with # without --work: echoed without a thread") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue needs threads of its own");
    ServerProcess server(under_strace(server_with("1"), {"?clone,?clone3:error=EAGAIN"}));
    Client(server.address()).echo("# hello");
  });
}

TEST_CASE("failed-wake-up: a write to the break pipe fails: it is repeated") {
  holds([] {
    if (kThreadSanitizer) skip("ThreadSanitizer makes writes of its own");
    // The second write of each thread fails. For the worker this is the first reply, after the
    // "listening" line; for the pool's thread it is the break after the second blocking call.
    const Command command = server_with("1", {"--work", "100ms"});
    ServerProcess server(under_strace(command, {"write:error=EFAULT:when=2"}));
    Client first(server.address());
    first.send("# work");
    CHECK(first.is_closed_within(patience));
    Client second(server.address());
    second.send("# work");
    CHECK(second.hears_within(500ms));
    CHECK(second.receive(6) == "# work");
  });
}

TEST_CASE("stop-blocking: SIGTERM, a blocking call is under way: its reply is sent") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    client.send("#");
    CHECK_FALSE(client.hears_within(20ms));
    server.signal(SIGTERM);
    CHECK(client.receive_until_end() == "#");
    expect_exit_0(server, 2s);
  });
}

TEST_CASE(
    "stop-slow-reply: SIGTERM, a client got a slow reply: it may send again within the pause") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    client.send("#");
    CHECK_FALSE(client.hears_within(20ms));
    server.signal(SIGTERM);
    CHECK(client.receive(1) == "#");
    std::this_thread::sleep_for(150ms);
    client.echo("one more thing");
    CHECK(client.is_closed_within(1s));
  });
}

TEST_CASE("idle-memory: an idle connection: at most 512 bytes of memory") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
    if (POLLER != std::string("epoll")) skip("libkqueue's own memory would be counted");
    constexpr std::size_t kClients = 18'000;
    Swarm::need_descriptors(kClients);
    ServerProcess server(kServer.command);
    const std::size_t before = server.usage().resident;
    Swarm swarm(server.address(), kClients, battery::seed());
    swarm.connect();
    swarm.exchange({.bytes = 2'000, .smallest_chunk = 2'000, .largest_chunk = 2'000});
    const std::size_t each = (server.usage().resident - before) / kClients;
    CAPTURE(each);
    CHECK(each <= 512);
  });
}

TEST_CASE("schedtrace: --schedtrace: one line about the scheduler each period") {
  holds([] {
    ServerProcess server(kServer.command.with({"--schedtrace", "100ms"}));
    auto clients = connect_clients(server.address(), 10);
    for (Client& client : clients) client.echo("hello");
    const auto lines = [&] {
      const std::string trace = server.errors();
      return std::count(trace.begin(), trace.end(), '\n');
    };
    CHECK(wait_until(patience, [&] { return lines() >= 3; }));
    const std::string trace = server.errors();
    CAPTURE(trace);
    CHECK(trace.starts_with("SCHED workers=2 running="));
    CHECK(trace.find("parked=12") != std::string::npos);  // the clients', the acceptor, and main
  });
}

TEST_CASE(
    "idle-timeout-busy: --idle-timeout, bytes came in time while the server was busy: they are "
    "echoed") {
  holds([] {
    // The third write takes 600 ms: after the "listening" line and the first reply.
    const Command command = server_with("1", {"--idle-timeout", "300ms"});
    ServerProcess server(under_strace(command, {"write:delay_enter=600000:when=3"}));
    Client client(server.address());
    Client other(server.address());
    client.echo("hello");
    other.send("hello");
    std::this_thread::sleep_for(100ms);
    client.send("in time");
    CHECK(client.receive(7) == "in time");
    CHECK(other.receive(5) == "hello");
    CHECK(client.is_closed_within(patience));
  });
}
