// The test cases that several chapters share: the battery, and other claims about their
// servers. chapter.cmake compiles this file into the test of each chapter, with CHAPTER, the
// chapter's number. The server is kServer, which the chapter's test.cpp defines.
#include <fmt/core.h>

#include <csignal>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/chapter.h"
#include "common/testing/cost.h"
#include "common/testing/faults.h"
#include "common/testing/swarm.h"

namespace {

#ifdef POLLER  // 06 to 08 can be built with either
constexpr bool kKqueue = POLLER == std::string_view("kqueue");
#else
constexpr bool kKqueue = CHAPTER == 5;
#endif

#if CHAPTER >= 3
// The server with one thread for all connections.
Command on_one_thread() {
  return CHAPTER < 8 ? kServer.command : kServer.command.with({"--workers", "1"});
}

// Whether the server has closed its listener: another program can then take the port.
bool port_is_free(const Address& address) {
  try {
    listen_on(address);
    return true;
  } catch (const StartupError&) {
    return false;
  }
}
#endif

}  // namespace

// ---- All chapters: the battery.

TEST_CASE("one-byte-at-a-time: single bytes: each is echoed before the next is sent") {
  holds(kServer, battery::one_byte_at_a_time);
}
TEST_CASE("any-bytes-any-size: messages of any bytes and any size: echoed unchanged") {
  holds(kServer, battery::any_bytes_any_size);
}
TEST_CASE("arbitrary-chunks: bytes in arbitrary chunks: echoed in order") {
  holds(kServer, battery::arbitrary_chunks);
}
TEST_CASE("half-close: a client half-closes: it gets all of its bytes, then the end") {
  holds(kServer, battery::half_close);
}
TEST_CASE("half-close-slow-reader: a client half-closes and reads late: it gets all of its bytes") {
  holds(kServer, battery::half_close_slow_reader);
}
TEST_CASE("back-pressure: clients send and never read: no memory and no CPU is used for them") {
  holds(kServer, battery::back_pressure);
}
TEST_CASE("idle: a thousand silent clients: no CPU is used") { holds(kServer, battery::idle); }
TEST_CASE("reset: a reset: one connection ends, and no other") { holds(kServer, battery::reset); }
TEST_CASE("close-without-reading: a client closes without reading: the server goes on") {
  holds(kServer, battery::close_without_reading);
}
TEST_CASE("churn: five thousand clients come and go: no memory, descriptor or thread is left") {
  holds(kServer, battery::churn);
}
TEST_CASE(
    "gone-before-accepted: a thousand clients left before they were accepted: the next is not "
    "delayed") {
  holds(kServer, battery::gone_before_accepted);
}
TEST_CASE("aborted-accepts: a connection died in the backlog: it is skipped at once") {
  holds(kServer, battery::aborted_accepts);
}
TEST_CASE("interrupted-calls: signals interrupt system calls: nothing changes for the clients") {
  holds(kServer, battery::interrupted_calls);
}
TEST_CASE("short-writes: a write takes only a part: the rest is written") {
  holds(kServer, battery::short_writes);
}
TEST_CASE("random-errors: system calls fail at random: single connections end, and nothing else") {
  holds(kServer, battery::random_errors);
}
TEST_CASE("out-of-memory: allocations fail: single connections end, and nothing else") {
  holds([] {
    if (kKqueue) skip("libkqueue does not survive a failed allocation");
    battery::out_of_memory(kServer);
  });
}
TEST_CASE("port-in-use: a port in use: a one-line startup error") {
  holds(kServer, battery::port_in_use);
}
TEST_CASE("misuse: a wrong flag: a one-line error") { holds(kServer, battery::misuse); }
TEST_CASE("signals-blocked: SIGTERM and SIGINT blocked by the parent: the server still stops") {
  holds(kServer, battery::signals_blocked);
}
TEST_CASE("interrupt-ignored: SIGINT ignored by the parent: only SIGTERM stops the server") {
  holds(kServer, battery::interrupt_ignored);
}
TEST_CASE("process-one: first process of a container: the server stops at SIGTERM and SIGINT") {
  holds(kServer, battery::process_one);
}
TEST_CASE("keep-alive: an idle connection: the kernel probes its peer") {
  holds(kServer, battery::keep_alive);
}

#if CHAPTER <= 2
TEST_CASE("stop-at-once: SIGTERM or SIGINT: the server dies of the signal") {
  holds([] {
    for (const int number : {SIGTERM, SIGINT}) {
      ServerProcess server(kServer.command);
      Client client(server.address());
      client.echo("hello");
      server.signal(number);
      const auto exit = server.wait_for_exit(1s);
      REQUIRE(exit.has_value());
      CHECK(exit->signalled);
      CHECK(exit->code == number);
      CHECK(client.is_closed_within(1s));
    }
  });
}
#endif

// ---- From 02 on: many clients at once.

#if CHAPTER >= 2
TEST_CASE("many-at-once: a thousand clients or more at once: each gets its own bytes") {
  holds(kServer, battery::many_at_once);
}
TEST_CASE("isolation: a client never reads: the others are not delayed") {
  holds(kServer, battery::isolation);
}
TEST_CASE(
    "out-of-descriptors: no free descriptor: existing connections are served, new ones wait") {
  holds(kServer, battery::out_of_descriptors);
}
#endif

#if CHAPTER == 4 || CHAPTER == 6
TEST_CASE("many-at-once-18000: eighteen thousand clients at once: each gets its own bytes") {
  holds([] {
    Subject server = kServer;
    server.clients = 18'000;
    battery::many_at_once(server);
  });
}
#endif

// ---- From 03 on: shutdown.

#if CHAPTER >= 3
TEST_CASE("stop-idle: SIGTERM, idle connections: they are closed") {
  holds(kServer, battery::stop_idle);
}
TEST_CASE("stop-busy: SIGTERM, bytes are on their way: every one is echoed") {
  holds(kServer, battery::stop_busy);
}
TEST_CASE(
    "stop-stuck: SIGTERM, a client never reads: the server waits until the grace period ends") {
  holds(kServer, battery::stop_stuck);
}
TEST_CASE("stop-unacknowledged: SIGTERM, a client reads slowly: it gets every byte") {
  holds(kServer, battery::stop_unacknowledged);
}
TEST_CASE("stop-asked-again: SIGTERM again and again: shutdown is not delayed") {
  holds(kServer, battery::stop_asked_again);
}

TEST_CASE("stop-door: SIGTERM, a new client: it is refused, and a successor can bind the port") {
  holds(kServer, battery::stop_door);
}
TEST_CASE("stop-shortage: SIGTERM, clients wait for a descriptor: they are served") {
  holds(kServer, battery::stop_shortage);
}
TEST_CASE("stop-flood: SIGTERM, the backlog does not empty in time: the server ends") {
  holds(kServer, battery::stop_flood);
}
TEST_CASE("stop-stalls: SIGTERM, the server is held up, a client keeps sending: it is served") {
  holds(kServer, battery::stop_stalls);
}

TEST_CASE("stop-conversation: SIGTERM, a client keeps sending: it is served until it pauses") {
  holds([] {
    for (const int number : {SIGTERM, SIGINT}) {
      ServerProcess server(kServer.command);
      Client client(server.address());
      client.echo("hello");
      server.signal(number);
      server.signal(SIGTERM);
      // Several times the pause that ends a connection. The pauses are shorter, but long enough
      // for each reply to be acknowledged (which the kernel delays by 40 ms).
      for (int i = 0; i < 15; ++i) {
        client.echo("still here");
        std::this_thread::sleep_for(90ms);
      }
      CHECK(client.is_closed_within(1s));
      expect_exit_0(server, 1s);
    }
  });
}

TEST_CASE("stop-suspended: SIGTERM, bytes came while the server was suspended: they are echoed") {
  holds([] {
    ServerProcess server(kServer.command);
    auto clients = connect_clients(server.address(), 200);
    for (Client& client : clients) client.echo("hello");
    server.signal(SIGTERM);
    CHECK(wait_until(patience, [&] { return port_is_free(server.address()); }));
    server.freeze();
    if (CHAPTER < 8) {
      std::this_thread::sleep_for(250ms);  // a tick is due, and finds all clients silent
      server.thaw();
      std::this_thread::sleep_for(20ms);
      server.freeze();
    }
    for (Client& client : clients) client.send("wait");
    std::this_thread::sleep_for(CHAPTER < 8 ? 250ms : 600ms);  // a tick, or all deadlines, are due
    server.thaw();
    for (Client& client : clients) CHECK(client.receive(4) == "wait");
  });
}

TEST_CASE(
    "stop-last-moment: SIGTERM, bytes come just before the connection would be closed: they are "
    "echoed") {
  holds([] {
    // The server is held up for two seconds before its last check of the socket, after which it
    // would close the connection. In 03 to 07 this is the check in the second tick.
    ServerProcess server(
        under_strace(on_one_thread(),
                     {fmt::format("recvfrom:delay_enter=2000000:when={}", CHAPTER < 8 ? 2 : 1)}));
    Client client(server.address());
    client.echo("hello");
    server.signal(SIGTERM);
    std::this_thread::sleep_for(1200ms);
    client.send("wait");
    CHECK(client.receive(4) == "wait");
    CHECK(client.is_closed_within(patience));
    expect_exit_0(server, 1s);
  });
}

TEST_CASE("stop-out-of-descriptors: SIGTERM, out of descriptors: the server ends") {
  holds([] {
    Command command = kServer.command;
    command.descriptor_limit = 40;
    ServerProcess server(command);
    const auto clients = connect_clients(server.address(), 60);
    CHECK(wait_until(patience, [&] { return server.errors().starts_with("cannot accept"); }));
    server.signal(SIGTERM);
    expect_exit_0(server, 2s);
  });
}
#endif

#if CHAPTER == 4 || CHAPTER == 6 || CHAPTER == 7
TEST_CASE("stop-backlog: SIGTERM, a client in the backlog: it is served") {
  holds([] {
    // The signal handler's write to the pipe takes half a second to return. So the event of the
    // pipe comes before the event of the listener.
    ServerProcess server(under_strace(kServer.command, {"write:delay_exit=500000:when=2"}));
    signal_first_thread(server, SIGTERM);  // the loop's
    std::this_thread::sleep_for(200ms);
    Client client(server.address());
    client.echo("hello");
    CHECK(client.is_closed_within(2s));
    expect_exit_0(server, 2s);
  });
}
#endif

// ---- From 03 on: many connections on one thread.

#if CHAPTER >= 3 && CHAPTER <= 7
TEST_CASE("would-block: a read or a write fails with EAGAIN: it is repeated later") {
  holds([] {
    ServerProcess server(under_strace(
        kServer.command, {"read:error=EAGAIN:when=40+7", "write:error=EAGAIN:when=40+11"}));
    Swarm swarm(server.address(), 20, battery::seed());
    swarm.connect();
    swarm.exchange({.bytes = 20'000, .largest_chunk = 2'000, .finish = true});
  });
}

TEST_CASE("freed-descriptor: a client waits for a descriptor: it is served once one is free") {
  holds([] {
    Command command = kServer.command;
    command.descriptor_limit = 40;
    battery::with_server(command, [](ServerProcess& server) {
      auto clients = connect_clients(server.address(), 60);
      for (Client& client : clients) client.send("hello");
      CHECK(wait_until(patience, [&] { return server.errors().starts_with("cannot accept"); }));
      // Ten times one leaves, and the next is accepted without waiting for a tick.
      std::size_t next = 0;
      while (clients[next].hears_within(100ms)) ++next;
      const auto start = Clock::now();
      for (std::size_t i = 0; i < 10; ++i) {
        clients[i].close();
        CHECK(clients[next + i].receive(5) == "hello");
      }
      CHECK(ms_since(start) < 300);
    });
  });
}
#endif

#if CHAPTER >= 3
TEST_CASE("output-gone: a connection whose output has left: no CPU is used") {
  holds([] {
    ServerProcess server(kServer.command);
    Client client(server.address());
    client.receive(client.send_what_fits(std::string(16 << 20, 'x')));
    CHECK(server.cpu_percent(300ms) < 10);
    client.echo("hello");
  });
}

TEST_CASE("out-of-files: out of files in the whole system: accepting goes on after that") {
  holds([] {
    // ENFILE: the whole system is out of files. Closing connections here does not end that.
    ServerProcess server(under_strace(kServer.command, {"accept4:error=ENFILE:when=1"}));
    Client client(server.address());
    client.echo("hello");
    CHECK(server.errors().starts_with("cannot accept"));
  });
}

TEST_CASE("flood: a client sends without end: the others are served in between") {
  holds([] {
    CallLog log(on_one_thread(), "read,recvmsg");
    ServerProcess server(log.command());
    Client flood(server.address());
    Client other(server.address());
    flood.echo("first");
    other.echo("second");
    std::this_thread::sleep_for(50ms);  // until the server waits; if too short, less is tried
    server.freeze();
    const std::size_t sent = flood.send_what_fits(std::string(16 << 20, 'x'));
    REQUIRE(sent > 1'000'000);  // bytes for many reads are waiting
    other.send("me too");
    server.thaw();
    CHECK(other.receive(6) == "me too");
    std::size_t between = 0;
    bool answered = false;
    for (const std::string& line : log.lines()) {
      if (line.find("me too") != std::string::npos) answered = true;
      if (!answered && line.find("xxx") != std::string::npos) ++between;
    }
    CHECK(answered);
    CHECK(between <= 2);
  });
}
#endif

#if CHAPTER == 4 || CHAPTER == 5
TEST_CASE(
    "cost-beside-idle: ten thousand idle connections: a message costs less than half as much "
    "again") {
  holds([] {
    if (kSanitized) skip("time is the sanitizer's here");
    const Costs costs = cost_beside_idle(kServer.command, 1, 10'000, 1'000, 5);
    CAPTURE(costs.alone);
    CAPTURE(costs.beside_idle);
    CHECK(costs.ratio < 1.5);
  });
}

TEST_CASE(
    "descriptor-reuse: a connection ends in a batch of events: its descriptor stays taken while "
    "the batch lasts") {
  holds([] {
    CallLog log(kServer.command, "accept4,close");
    ServerProcess server(log.command());
    Client first(server.address());
    first.echo("hello");
    server.freeze();
    first.close();
    Client second(server.address());  // one batch: the end of the first, and the second
    server.thaw();
    second.echo("hello");
    std::vector<std::string> descriptors;  // returned by accept
    for (const std::string& line : log.lines()) {
      const std::size_t equals = line.rfind("= ");
      if (line.starts_with("accept4(") && line[equals + 2] != '-')
        descriptors.push_back(line.substr(equals + 2));
    }
    REQUIRE(descriptors.size() == 2);
    CHECK(descriptors[0] != descriptors[1]);
  });
}
#endif

#if CHAPTER == 4 || CHAPTER >= 6
TEST_CASE("no-epoll-ctl: messages in the steady state: no epoll_ctl") {
  holds([] {
    if (kKqueue) skip("the poller is kqueue here");
    CallLog log(kServer.command, "epoll_ctl,write");
    ServerProcess server(log.command());
    auto clients = connect_clients(server.address(), 20);
    for (Client& client : clients) client.echo("hello");
    // The clients, the listener, and a pipe; in 08 two pipes.
    constexpr std::size_t kCalls = 20 + (CHAPTER < 8 ? 2 : 3);
    CHECK(wait_until(patience, [&] { return log.count("epoll_ctl") == kCalls; }));
    for (int i = 0; i < 10; ++i) {
      for (Client& client : clients) client.send("hello");
      for (Client& client : clients) CHECK(client.receive(5) == "hello");
    }
    CHECK(log.count("write") >= 20 * 11);
    CHECK(log.count("epoll_ctl") == kCalls);
  });
}

TEST_CASE("epoll-full: no room in epoll for a connection: it is closed, the others are served") {
  holds([] {
    if (kKqueue) skip("the poller is kqueue here");
    // The call for the second client, after the listener, the pipe (08: two), and the first.
    ServerProcess server(under_strace(
        on_one_thread(), {fmt::format("epoll_ctl:error=ENOSPC:when={}", CHAPTER < 8 ? 4 : 5)}));
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    CHECK(second.is_closed_within(patience));
    Client third(server.address());
    third.echo("third");
    first.echo("first again");
    CHECK(server.errors().starts_with(CHAPTER < 8 ? "cannot watch descriptor" : "cannot accept: "));
  });
}
#endif

#if CHAPTER == 6 || CHAPTER == 7
TEST_CASE("failed-wake-up: a write to the wake-up pipe fails: it is repeated") {
  holds([] {
    if (kThreadSanitizer) skip("ThreadSanitizer makes writes of its own");
    // The first write is the "listening" line, the second the signal handler's.
    ServerProcess server(under_strace(kServer.command, {"write:error=EFAULT:when=2"}));
    signal_first_thread(server, SIGTERM);  // the loop's
    expect_exit_0(server, 2s);
  });
}

TEST_CASE("idle-memory: an idle connection: at most 1 KiB of memory") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
    constexpr std::size_t kClients = 10'000;
    Swarm::need_descriptors(kClients);
    ServerProcess server(kServer.command.with({"--idle-timeout", "1h"}));
    const std::size_t before = server.usage().resident;
    Swarm swarm(server.address(), kClients, battery::seed());
    swarm.connect();
    swarm.exchange({.bytes = 20'000, .smallest_chunk = 20'000, .largest_chunk = 20'000});
    const std::size_t each = (server.usage().resident - before) / kClients;
    CAPTURE(each);
    CHECK(each <= 1024);
  });
}
#endif

// ---- From 06 on: --idle-timeout and --work.

#if CHAPTER >= 6
TEST_CASE("idle-slow-reader: --idle-timeout, a client reads slowly: it is not closed") {
  holds(kServer, battery::idle_slow_reader);
}
TEST_CASE("idle-left: --idle-timeout, clients have left: their timers do no harm") {
  holds(kServer, battery::idle_left);
}
TEST_CASE("stop-blocked: SIGTERM, a request blocks: no byte is lost, and the server ends") {
  holds(kServer, battery::stop_blocked);
}
TEST_CASE("idle-timeout: --idle-timeout: a silent client is closed, an active one is not") {
  holds(kServer, battery::idle_timeout);
}
TEST_CASE("order: slow and quick requests of one client: answered in order") {
  holds(kServer, battery::order);
}

TEST_CASE("idle-timeout-never-reads: --idle-timeout, a client never reads: it is closed") {
  holds([] {
    ServerProcess server(kServer.command.with({"--idle-timeout", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    const std::size_t with_client = server.usage().descriptors;
    client.send_what_fits(std::string(16 << 20, 'x'), 50ms);
    CHECK(wait_until(patience, [&] { return server.usage().descriptors < with_client; }));
  });
}

TEST_CASE(
    "idle-timeout-suspended: --idle-timeout, a client received while the server was suspended: it "
    "is not closed") {
  holds([] {
    ServerProcess server(kServer.command.with({"--idle-timeout", "1s"}));
    Client client(server.address());
    const std::size_t sent = client.send_what_fits(std::string(16 << 20, 'x'));
    server.freeze();
    REQUIRE(sent > 4 << 20);
    client.receive(3 << 19);  // enough that there is room to write
    std::this_thread::sleep_for(1200ms);
    server.thaw();
    client.receive(sent - (3 << 19));
  });
}

TEST_CASE("duration-range: a duration without a unit, or out of range: a one-line error") {
  holds([] {
    for (const char* flag : {"--idle-timeout", "--work"}) {
      for (const char* value : {"30", "0s", "-1s", "1d", "s", ""}) {
        battery::expect_refusal(kServer.command.with({flag, value}), 2,
                                "takes a time with its unit, from 1ms to 596h");
      }
    }
  });
}
#endif

// ---- From 07 on: --workers.

#if CHAPTER >= 7
TEST_CASE("slow-handler: a slow request: other clients are not delayed") {
  holds(kServer, battery::slow_handler);
}

TEST_CASE("stop-endless-work: SIGTERM, slow work does not end: the server ends without it") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "1h"}));
    Client client(server.address());
    client.send("#");
    CHECK_FALSE(client.hears_within(50ms));
    server.signal(SIGTERM);
    expect_exit_0(server, 7s);
    CHECK(server.errors().find("1 jobs are not finished") != std::string::npos);
  });
}

TEST_CASE("no-worker-thread: a worker that cannot be started: a one-line startup error") {
  holds([] {
    // The third worker. In 08 the main thread is the first.
    const Command command =
        under_strace(kServer.command.with({"--workers", "3", "--port", "0"}),
                     {fmt::format("?clone,?clone3:error=EAGAIN:when={}", CHAPTER == 7 ? 3 : 2)});
    battery::expect_refusal(command, 1, "cannot start 3 workers: Resource temporarily unavailable");
  });
}

TEST_CASE("workers-range: --workers out of range: a one-line error") {
  holds([] {
    for (const char* value : {"0", "10001", "1000000000", "two"}) {
      battery::expect_refusal(kServer.command.with({"--workers", value}), 2,
                              "--workers takes a number from 1 to 10000");
    }
  });
}
#endif
