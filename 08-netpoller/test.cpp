// 08-netpoller: the battery with ten thousand clients on two workers, then eighteen thousand
// on one, two and four.
#include <algorithm>
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/cost.h"
#include "common/testing/faults.h"
#include "common/testing/holds.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {
const Subject kServer{.command = {.argv = {SERVER, "--workers", "2"}, .environment = {}},
                      .clients = 10'000,
                      .short_reads = false};  // a short read has taken everything: net.h
}

TEST_CASE("one byte at a time: each comes back before the next is sent") {
  holds(kServer, battery::one_byte_at_a_time);
}
TEST_CASE("messages of any bytes and any size: echoed unchanged") {
  holds(kServer, battery::any_bytes_any_size);
}
TEST_CASE("bytes in arbitrary chunks: echoed in order") {
  holds(kServer, battery::arbitrary_chunks);
}
TEST_CASE("a client half-closes: it gets all of its bytes, then the end") {
  holds(kServer, battery::half_close);
}
TEST_CASE("a client half-closes and reads late: it gets all of its bytes") {
  holds(kServer, battery::half_close_slow_reader);
}
TEST_CASE("ten thousand clients at once: each gets its own bytes") {
  holds(kServer, battery::many_at_once);
}
TEST_CASE("a client never reads: the others are not delayed") {
  holds(kServer, battery::isolation);
}
TEST_CASE("clients send and never read: no memory and no CPU is used for them") {
  holds(kServer, battery::back_pressure);
}
TEST_CASE("a thousand silent clients: no CPU is used") { holds(kServer, battery::idle); }
TEST_CASE("a reset: ends one connection and no other") { holds(kServer, battery::reset); }
TEST_CASE("a client closes without reading: the server goes on") {
  holds(kServer, battery::close_without_reading);
}
TEST_CASE("five thousand clients come and go: no memory, descriptor or thread is left") {
  holds(kServer, battery::churn);
}
TEST_CASE("out of descriptors: existing connections are served, new ones wait") {
  holds(kServer, battery::out_of_descriptors);
}
TEST_CASE("a thousand clients left before they were accepted: the next is not delayed") {
  holds(kServer, battery::gone_before_accepted);
}
TEST_CASE("a connection died in the backlog: it is skipped at once") {
  holds(kServer, battery::aborted_accepts);
}
TEST_CASE("signals interrupt system calls: nothing changes for the clients") {
  holds(kServer, battery::interrupted_calls);
}
TEST_CASE("a write takes only a part: the rest is written") {
  holds(kServer, battery::short_writes);
}
TEST_CASE("random errors: single connections end, and nothing else") {
  holds(kServer, battery::random_errors);
}
TEST_CASE("out of memory: single connections end, and nothing else") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue does not survive a failed allocation");
    battery::out_of_memory(kServer);
  });
}
TEST_CASE("a port in use: a one-line startup error") { holds(kServer, battery::port_in_use); }
TEST_CASE("a wrong flag: a one-line error") { holds(kServer, battery::misuse); }
TEST_CASE("--idle-timeout: a silent client is closed, an active one is not") {
  holds(kServer, battery::idle_timeout);
}
TEST_CASE("slow and quick requests of one client: answered in order") {
  holds(kServer, battery::order);
}
TEST_CASE("SIGTERM: idle connections are closed") { holds(kServer, battery::stop_idle); }
TEST_CASE("SIGTERM: every byte on its way is echoed") { holds(kServer, battery::stop_busy); }
TEST_CASE("SIGTERM, a client never reads: the server waits until the grace period ends") {
  holds(kServer, battery::stop_stuck);
}
TEST_CASE("SIGTERM, a client reads slowly: it gets every byte") {
  holds(kServer, battery::stop_unacknowledged);
}
TEST_CASE("SIGTERM again: shutdown is not delayed") { holds(kServer, battery::stop_asked_again); }

// What is special about this chapter.

TEST_CASE("SIGTERM, a client keeps sending: it is served until it pauses") {
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
      const auto exit = server.wait_for_exit(1s);
      REQUIRE(exit.has_value());
      CHECK(exit->text() == "exit code 0");
    }
  });
}

TEST_CASE("SIGTERM, bytes came while the server was stopped: they are echoed") {
  holds([] {
    ServerProcess server(kServer.command);
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 200; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->echo("hello");
    }
    const std::size_t listening = server.usage().descriptors;
    server.signal(SIGTERM);
    CHECK(wait_until(patience, [&] { return server.usage().descriptors < listening; }));
    server.freeze();
    for (auto& client : clients) client->send("wait");
    std::this_thread::sleep_for(600ms);  // all deadlines pass
    server.thaw();
    for (auto& client : clients) CHECK(client->receive(4) == "wait");
  });
}

TEST_CASE("SIGTERM, bytes come just before the connection would be closed: they are echoed") {
  holds([] {
    // The server is held up for two seconds before it looks at the socket for the first time:
    // meanwhile the deadline passes, and then the bytes come.
    ServerProcess server(under_strace({.argv = {SERVER, "--workers", "1"}, .environment = {}},
                                      {"recvfrom:delay_enter=2000000:when=1"}));
    Client client(server.address());
    client.echo("hello");
    server.signal(SIGTERM);
    std::this_thread::sleep_for(1200ms);
    client.send("wait");
    CHECK(client.receive(4) == "wait");
    CHECK(client.is_closed_within(patience));
    const auto exit = server.wait_for_exit(1s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("SIGTERM, out of descriptors: the server ends") {
  holds([] {
    Command command = kServer.command;
    command.descriptor_limit = 40;
    ServerProcess server(command);
    std::vector<std::unique_ptr<Client>> clients;
    clients.reserve(60);
    for (int i = 0; i < 60; ++i) clients.push_back(std::make_unique<Client>(server.address()));
    CHECK(wait_until(patience, [&] { return server.errors().starts_with("cannot accept"); }));
    server.signal(SIGTERM);
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("SIGTERM, out of memory: the server ends") {
  holds([] {
    // Every read from the 200th on fails; those before it may be the loader's.
    ServerProcess server(under_strace({.argv = {SERVER, "--workers", "1"}, .environment = {}},
                                      {"read:error=ENOMEM:when=200+"}));
    const auto is_refused = [&] {
      Client client(server.address());
      client.send("hello");
      CHECK(client.hears_within(patience));
      return client.is_closed_within(20ms);
    };
    CHECK(wait_until(patience, is_refused));
    server.signal(SIGTERM);
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("SIGTERM, clients in the backlog: they are served") {
  holds([] {
    // When the server continues, the clients and the signal have come. The last client's
    // request is a slow one.
    ServerProcess server({.argv = {SERVER, "--workers", "1", "--work", "1s"}, .environment = {}});
    server.freeze();
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 50; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->send(i == 49 ? "#ello" : "hello");
    }
    server.signal(SIGTERM);
    server.thaw();
    for (int i = 0; i < 50; ++i)
      CHECK(clients[static_cast<std::size_t>(i)]->receive_until_end() ==
            (i == 49 ? "#ello" : "hello"));
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
    CHECK(server.errors().empty());
  });
}

TEST_CASE("a connection whose output has left: no CPU is used") {
  holds([] {
    ServerProcess server(kServer.command);
    Client client(server.address());
    client.receive(client.send_what_fits(std::string(16 << 20, 'x')));
    CHECK(server.cpu_percent(300ms) < 10);
    client.echo("hello");
  });
}

TEST_CASE("a silent client, four workers: no thread runs for four seconds") {
  holds([] {
    ServerProcess server({.argv = {SERVER, "--workers", "4"}, .environment = {}});
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

TEST_CASE("one busy client after a pause, two workers: a message does not wake the second worker") {
  holds([] {
    ServerProcess server({.argv = {SERVER, "--workers", "2"}, .environment = {}});
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

TEST_CASE("out of files in the whole system: accepting goes on after that") {
  holds([] {
    // ENFILE: the whole system is out of files. No connection of this server ends that.
    ServerProcess server(under_strace(kServer.command, {"accept4:error=ENFILE:when=1"}));
    Client client(server.address());
    client.echo("hello");
    CHECK(server.errors().starts_with("cannot accept"));
  });
}

TEST_CASE("a client sends without end: the others are served in between") {
  holds([] {
    CallLog log({.argv = {SERVER, "--workers", "1"}, .environment = {}}, "read,recvmsg");
    ServerProcess server(log.command());
    Client flood(server.address());
    Client other(server.address());
    flood.echo("first");
    other.echo("second");
    std::this_thread::sleep_for(50ms);  // until both have parked; if not, the test asks less
    server.freeze();
    const std::size_t sent = flood.send_what_fits(std::string(16 << 20, 'x'));
    REQUIRE(sent > 1'000'000);  // many reads' worth of bytes are waiting
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

TEST_CASE(
    "eighteen thousand clients at once, on one, two and four workers: each gets its own bytes") {
  holds([] {
    for (const char* workers : {"1", "2", "4"}) {
      const Command command = {.argv = {SERVER, "--workers", workers}, .environment = {}};
      battery::many_at_once({.command = command, .clients = 18'000});
    }
  });
}

TEST_CASE("a slow request: other clients are not delayed") {
  holds(kServer, battery::slow_handler);
}

TEST_CASE("a slow request on one worker: other clients are not delayed") {
  holds({.command = {.argv = {SERVER, "--workers", "1"}, .environment = {}}, .clients = 1000},
        battery::slow_handler);
}

TEST_CASE("a worker that cannot be started: a one-line startup error") {
  holds([] {
    const Command command = under_strace(kServer.command.with({"--workers", "3", "--port", "0"}),
                                         {"?clone,?clone3:error=EAGAIN:when=2"});
    battery::expect_refusal(command, 1, "cannot start 3 workers: Resource temporarily unavailable");
  });
}

TEST_CASE("no thread for a blocking call: its connection is closed, and no other") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue needs threads of its own");
    const Command command{.argv = {SERVER, "--workers", "1", "--work", "1ms"}, .environment = {}};
    ServerProcess server(under_strace(command, {"?clone,?clone3:error=EAGAIN"}));
    Client client(server.address());
    Client other(server.address());
    client.send("#");
    CHECK(client.is_closed_within(patience));
    CHECK(server.errors().starts_with("a goroutine has ended: "));
    other.echo("hello");
  });
}

TEST_CASE("a request that begins with # without --work: echoed without a thread") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue needs threads of its own");
    const Command command{.argv = {SERVER, "--workers", "1"}, .environment = {}};
    ServerProcess server(under_strace(command, {"?clone,?clone3:error=EAGAIN"}));
    Client(server.address()).echo("# hello");
  });
}

TEST_CASE("a failed write to the break pipe: tried again") {
  holds([] {
    if (kThreadSanitizer) skip("ThreadSanitizer makes writes of its own");
    // The second write of each thread fails. For the worker this is the first reply, after the
    // "listening" line; for the pool's thread it is the break after the second blocking call.
    const Command command{.argv = {SERVER, "--workers", "1", "--work", "100ms"}, .environment = {}};
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

TEST_CASE("SIGTERM, a blocking call is under way: its reply is sent") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    client.send("#");
    CHECK_FALSE(client.hears_within(20ms));
    server.signal(SIGTERM);
    CHECK(client.receive_until_end() == "#");
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("SIGTERM, a client got a slow reply: it may send again within the pause") {
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

TEST_CASE("SIGTERM, a blocking call does not end: the server ends without it") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "1h"}));
    Client client(server.address());
    client.send("#");
    CHECK_FALSE(client.hears_within(50ms));
    server.signal(SIGTERM);
    const auto exit = server.wait_for_exit(7s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
    CHECK(server.errors().find("1 jobs are not finished") != std::string::npos);
  });
}

TEST_CASE("an idle connection: at most 512 bytes of memory") {
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

TEST_CASE("--schedtrace: one line about the scheduler each period") {
  holds([] {
    ServerProcess server(kServer.command.with({"--schedtrace", "100ms"}));
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 10; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->echo("hello");
    }
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

TEST_CASE("--idle-timeout, a client never reads: it is closed") {
  holds([] {
    ServerProcess server(kServer.command.with({"--idle-timeout", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    const std::size_t with_client = server.usage().descriptors;
    client.send_what_fits(std::string(16 << 20, 'x'), 50ms);
    CHECK(wait_until(patience, [&] { return server.usage().descriptors < with_client; }));
  });
}

TEST_CASE("--idle-timeout, bytes came in time while the server was busy: they are echoed") {
  holds([] {
    // The third write takes 600 ms: after the "listening" line and the first reply.
    const Command command{.argv = {SERVER, "--workers", "1", "--idle-timeout", "300ms"},
                          .environment = {}};
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

TEST_CASE("--idle-timeout, a client received while the server was stopped: it is not closed") {
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

TEST_CASE("a duration without a unit, or out of range: a one-line error") {
  holds([] {
    for (const char* flag : {"--idle-timeout", "--work"}) {
      for (const char* value : {"30", "0s", "-1s", "1d", "s", ""}) {
        battery::expect_refusal(kServer.command.with({flag, value}), 2,
                                "takes a time with its unit, from 1ms to 596h");
      }
    }
  });
}

TEST_CASE("--workers out of range: a one-line error") {
  holds([] {
    for (const char* value : {"0", "10001", "1000000000", "two"}) {
      battery::expect_refusal(kServer.command.with({"--workers", value}), 2,
                              "--workers takes a number from 1 to 10000");
    }
  });
}

TEST_CASE("messages in the steady state: no epoll_ctl") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("the poller is kqueue here");
    CallLog log(kServer.command, "epoll_ctl,write");
    ServerProcess server(log.command());
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 20; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->echo("hello");
    }
    CHECK(log.count("epoll_ctl") == 20 + 3);  // the clients, the listener, two pipes
    for (int i = 0; i < 10; ++i) {
      for (auto& client : clients) client->echo("hello");
    }
    CHECK(log.count("write") >= 20 * 11);
    CHECK(log.count("epoll_ctl") == 20 + 3);
  });
}

TEST_CASE("no room in epoll for a connection: it is closed, the others are served") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("the poller is kqueue here");
    // The fifth call of the one worker, after two pipes, the listener and the first client.
    ServerProcess server(under_strace({.argv = {SERVER, "--workers", "1"}, .environment = {}},
                                      {"epoll_ctl:error=ENOSPC:when=5"}));
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    CHECK(second.is_closed_within(patience));
    Client third(server.address());
    third.echo("third");
    first.echo("first again");
    CHECK(server.errors().starts_with("cannot accept: "));
  });
}

// How it is started.

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
TEST_CASE("stop-blocked: a request blocks: no byte is lost, and the server ends") {
  holds(kServer, battery::stop_blocked);
}
TEST_CASE("stop-door: during the grace a new client is refused, and a successor can bind") {
  holds(kServer, battery::stop_door);
}
TEST_CASE("stop-shortage: at SIGTERM clients that wait for a descriptor are served") {
  holds(kServer, battery::stop_short_of_descriptors);
}
TEST_CASE("stop-flood: a backlog that does not empty in time is left when the grace ends") {
  holds(kServer, battery::stop_flood);
}
TEST_CASE("stop-stalls: after stalls of the server a conversation with short pauses goes on") {
  holds(kServer, battery::stop_stalls);
}
TEST_CASE("idle-slow-reader: a client that reads slowly is not closed by the idle timeout") {
  holds(kServer, battery::idle_slow_reader);
}
TEST_CASE("idle-left: the timer of a client that left does no harm") {
  holds(kServer, battery::idle_left);
}
