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
                      .clients = 10'000};
}

TEST_CASE("each single byte comes back before the next is sent") {
  holds(kServer, battery::one_byte_at_a_time);
}
TEST_CASE("any bytes come back in any size") { holds(kServer, battery::any_bytes_any_size); }
TEST_CASE("however the bytes are split they come back in order") {
  holds(kServer, battery::arbitrary_chunks);
}
TEST_CASE("a client that half-closes gets all of its bytes and then the end") {
  holds(kServer, battery::half_close);
}
TEST_CASE("a client that half-closes and reads late gets all of its bytes") {
  holds(kServer, battery::half_close_slow_reader);
}
TEST_CASE("ten thousand clients at once each get their own bytes") {
  holds(kServer, battery::many_at_once);
}
TEST_CASE("a client that never reads delays nobody") { holds(kServer, battery::isolation); }
TEST_CASE("clients that send and never read cost neither memory nor CPU") {
  holds(kServer, battery::back_pressure);
}
TEST_CASE("a thousand silent clients cost no CPU") { holds(kServer, battery::idle); }
TEST_CASE("a reset ends one connection and nothing else") { holds(kServer, battery::reset); }
TEST_CASE("a client that closes without reading does no harm") {
  holds(kServer, battery::close_without_reading);
}
TEST_CASE("five thousand clients later nothing is left behind") { holds(kServer, battery::churn); }
TEST_CASE("without a free descriptor those inside are served and the others wait") {
  holds(kServer, battery::out_of_descriptors);
}
TEST_CASE("a thousand clients that have left before they are accepted hold up nobody") {
  holds(kServer, battery::gone_before_accepted);
}
TEST_CASE("a connection that died in the queue is skipped at once") {
  holds(kServer, battery::aborted_accepts);
}
TEST_CASE("signals change nothing") { holds(kServer, battery::interrupted_calls); }
TEST_CASE("a write that takes only a part is continued") { holds(kServer, battery::short_writes); }
TEST_CASE("random errors end single connections only") { holds(kServer, battery::random_errors); }
TEST_CASE("without memory single connections end and nothing else") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue does not survive a failed allocation");
    battery::out_of_memory(kServer);
  });
}
TEST_CASE("a port in use is said in one line") { holds(kServer, battery::port_in_use); }
TEST_CASE("a wrong flag is said in one line") { holds(kServer, battery::misuse); }
TEST_CASE("a client that is silent for too long is closed and one that speaks is not") {
  holds(kServer, battery::idle_timeout);
}
TEST_CASE("slow and quick requests of one client come back in order") {
  holds(kServer, battery::order);
}
TEST_CASE("at SIGTERM the idle are closed") { holds(kServer, battery::stop_idle); }
TEST_CASE("at SIGTERM every byte on its way comes back") { holds(kServer, battery::stop_busy); }
TEST_CASE("at SIGTERM a client that never reads is waited for until the grace ends") {
  holds(kServer, battery::stop_stuck);
}
TEST_CASE("at SIGTERM a client that reads slowly gets every byte") {
  holds(kServer, battery::stop_unacknowledged);
}
TEST_CASE("a signal too many does not hold up the end") {
  holds(kServer, battery::stop_asked_again);
}

// The chapter's own claims.

TEST_CASE("at SIGTERM a conversation goes on until it pauses") {
  holds([] {
    for (const int number : {SIGTERM, SIGINT}) {
      ServerProcess server(kServer.command);
      Client client(server.address());
      client.echo("hello");
      server.signal(number);
      server.signal(SIGTERM);  // said again
      // Longer than some ticks, with pauses that are shorter than one, and long enough for
      // each reply to be acknowledged (which the kernel puts off for 40 ms).
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

TEST_CASE("at SIGTERM what came while the server did not run is echoed") {
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
    std::this_thread::sleep_for(250ms);  // a tick is due; at it, all will be quiet
    server.thaw();
    std::this_thread::sleep_for(20ms);
    server.freeze();
    for (auto& client : clients) client->send("wait");
    std::this_thread::sleep_for(250ms);  // so is the next
    server.thaw();
    for (auto& client : clients) CHECK(client->receive(4) == "wait");
  });
}

TEST_CASE("at SIGTERM what comes in the last moment is echoed") {
  holds([] {
    // The look at the socket in the second tick, after which the client would be closed,
    // takes two seconds to begin: from 0.4 s to 2.4 s after the signal.
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

TEST_CASE("without a free descriptor it can still be stopped") {
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

TEST_CASE("without memory it can still be stopped") {
  holds([] {
    // From its 200th on every read fails; those before it may be the loader's.
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

TEST_CASE("at SIGTERM a client in the backlog is served") {
  holds([] {
    // When it goes on, both the listener and the signal have come. The goroutine that
    // accepts is the first, but has to let the other go on after a few.
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

TEST_CASE("once its output has left a connection costs nothing") {
  holds([] {
    ServerProcess server(kServer.command);
    Client client(server.address());
    client.receive(client.send_what_fits(std::string(16 << 20, 'x')));
    CHECK(server.cpu_percent(300ms) < 10);
    client.echo("hello");
  });
}

TEST_CASE("beside a silent client the server sleeps") {
  holds([] {
    ServerProcess server(kServer.command.with({"--workers", "2"}));
    Client client(server.address());
    client.echo("hello");
    std::this_thread::sleep_for(1s);  // until both workers sleep
    const std::size_t before = server.context_switches();
    if (before == 0) skip("/proc does not say how often a process was woken");
    std::this_thread::sleep_for(2s);
    const std::size_t switches = server.context_switches() - before;
    CAPTURE(switches);
    // A sleeper that looks up every 10 ms: 200. ThreadSanitizer's own thread: 20.
    CHECK(switches <= (kThreadSanitizer ? 40U : 0U));
    client.echo("hello");
  });
}

TEST_CASE("a shortage that ends elsewhere is noticed") {
  holds([] {
    // ENFILE: the whole system is short of files. No connection of ours ends that.
    ServerProcess server(under_strace(kServer.command, {"accept4:error=ENFILE:when=1"}));
    Client client(server.address());
    client.echo("hello");
    CHECK(server.errors().starts_with("cannot accept"));
  });
}

TEST_CASE("a client that sends without end does not hold up the others") {
  holds([] {
    CallLog log({.argv = {SERVER, "--workers", "1"}, .environment = {}}, "read,recvmsg");
    ServerProcess server(log.command());
    Client flood(server.address());
    Client other(server.address());
    flood.echo("first");
    other.echo("second");
    std::this_thread::sleep_for(50ms);  // until it waits again; too short, and less is tried
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

TEST_CASE("eighteen thousand clients at once on one worker, on two and on four") {
  holds([] {
    for (const char* workers : {"1", "2", "4"}) {
      const Command command = {.argv = {SERVER, "--workers", workers}, .environment = {}};
      battery::many_at_once({.command = command, .clients = 18'000});
    }
  });
}

TEST_CASE("one slow request delays nobody else") { holds(kServer, battery::slow_handler); }

TEST_CASE("one slow request delays nobody else on one worker either") {
  holds({.command = {.argv = {SERVER, "--workers", "1"}, .environment = {}}, .clients = 1000},
        battery::slow_handler);
}

TEST_CASE("threads that cannot be had end the start in one line") {
  holds([] {
    const Command command = under_strace(kServer.command.with({"--workers", "3", "--port", "0"}),
                                         {"?clone,?clone3:error=EAGAIN:when=2"});
    battery::expect_refusal(command, 1, "cannot start 3 workers: Resource temporarily unavailable");
  });
}

TEST_CASE("blocking work for which there can be no thread closes its client and no other") {
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

TEST_CASE("without --work a request that begins with # is like any other") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("libkqueue needs threads of its own");
    const Command command{.argv = {SERVER, "--workers", "1"}, .environment = {}};
    ServerProcess server(under_strace(command, {"?clone,?clone3:error=EAGAIN"}));
    Client(server.address()).echo("# hello");
  });
}

TEST_CASE("a break that fails is tried again") {
  holds([] {
    if (kThreadSanitizer) skip("ThreadSanitizer writes too, before us");
    // The second write of each thread. The worker's, after the line that it listens, is the
    // first reply; that of the thread that works is the break when the second work is done.
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

TEST_CASE("at SIGTERM blocking work is finished and its reply sent") {
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

TEST_CASE("at SIGTERM a client that has had a slow reply may say more for a tick") {
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

TEST_CASE("at SIGTERM blocking work that takes too long does not keep the server") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "1h"}));
    Client client(server.address());
    client.send("#");
    CHECK_FALSE(client.hears_within(50ms));
    server.signal(SIGTERM);
    const auto exit = server.wait_for_exit(7s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
    CHECK(server.errors().find("1 goroutines are not finished") != std::string::npos);
  });
}

TEST_CASE("an idle connection costs at most 512 bytes of memory") {
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

TEST_CASE("--schedtrace says once a period what the scheduler does") {
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
    CHECK(trace.find("parked=12") != std::string::npos);  // they, the acceptor, and main
  });
}

TEST_CASE("a client that never reads is closed when nothing has moved for too long") {
  holds([] {
    ServerProcess server(kServer.command.with({"--idle-timeout", "300ms"}));
    Client client(server.address());
    client.echo("hello");
    const std::size_t with_client = server.usage().descriptors;
    client.send_what_fits(std::string(16 << 20, 'x'), 50ms);
    CHECK(wait_until(patience, [&] { return server.usage().descriptors < with_client; }));
  });
}

TEST_CASE("a client that spoke in time while the server was held up is answered") {
  holds([] {
    // The third write, after the line that it listens and the first reply, takes 600 ms.
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

TEST_CASE("a client that has received while the server was held up is not silent") {
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

TEST_CASE("a duration needs its unit") {
  holds([] {
    for (const char* flag : {"--idle-timeout", "--work"}) {
      for (const char* value : {"30", "0s", "-1s", "1d", "s", ""}) {
        battery::expect_refusal(kServer.command.with({flag, value}), 2,
                                "takes a time with its unit, from 1ms to 596h");
      }
    }
  });
}

TEST_CASE("workers are at most 10,000") {
  holds([] {
    for (const char* value : {"0", "10001", "1000000000", "two"}) {
      battery::expect_refusal(kServer.command.with({"--workers", value}), 2,
                              "--workers takes a number from 1 to 10000");
    }
  });
}

TEST_CASE("in the steady state a message costs no epoll_ctl") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("the poller is kqueue here");
    CallLog log(kServer.command, "epoll_ctl,write");
    ServerProcess server(log.command());
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 20; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->echo("hello");
    }
    CHECK(log.count("epoll_ctl") == 20 + 3);  // each client's, the listener's, two pipes'
    for (int i = 0; i < 10; ++i) {
      for (auto& client : clients) client->echo("hello");
    }
    CHECK(log.count("write") >= 20 * 11);
    CHECK(log.count("epoll_ctl") == 20 + 3);
  });
}

TEST_CASE("a connection that epoll has no room for is closed and the others live") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("the poller is kqueue here");
    // The fifth call: after two pipes, the listener and the first client; of one thread.
    ServerProcess server(under_strace({.argv = {SERVER, "--workers", "1"}, .environment = {}},
                                      {"epoll_ctl:error=ENOSPC:when=5"}));
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    CHECK(second.is_closed_within(patience));
    Client third(server.address());
    third.echo("third");
    first.echo("first again");
    CHECK(server.errors().find("was refused") != std::string::npos);
  });
}
