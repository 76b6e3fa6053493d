// 06-event-loop: the battery with ten thousand clients, then eighteen thousand; time.
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
const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 10'000};
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
    ServerProcess server(under_strace(kServer.command, {"recvfrom:delay_enter=2000000:when=2"}));
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

TEST_CASE("at SIGTERM a client in the backlog is served") {
  holds([] {
    // The handler's write to the pipe takes half a second to return: the pipe is ready
    // before the listener is, and the listener's event comes after that of the stop.
    ServerProcess server(under_strace(kServer.command, {"write:delay_exit=500000:when=2"}));
    server.signal(SIGTERM);
    std::this_thread::sleep_for(200ms);
    Client client(server.address());
    client.echo("hello");
    CHECK(client.is_closed_within(2s));
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("a wake-up that fails is tried again") {
  holds([] {
    if (kThreadSanitizer) skip("ThreadSanitizer writes too, before us");
    // The second write, after the line that it listens, is that of the signal's handler.
    ServerProcess server(under_strace(kServer.command, {"write:error=EFAULT:when=2"}));
    server.signal(SIGTERM);
    const auto exit = server.wait_for_exit(2s);
    REQUIRE(exit.has_value());
    CHECK(exit->text() == "exit code 0");
  });
}

TEST_CASE("a call that cannot go on now is made again later") {
  holds([] {
    ServerProcess server(under_strace(
        kServer.command, {"read:error=EAGAIN:when=40+7", "write:error=EAGAIN:when=40+11"}));
    Swarm swarm(server.address(), 20, battery::seed());
    swarm.connect();
    swarm.exchange({.bytes = 20'000, .largest_chunk = 2'000, .finish = true});
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

TEST_CASE("a client that waits for a descriptor has it as soon as one is free") {
  holds([] {
    Command command = kServer.command;
    command.descriptor_limit = 40;
    battery::with_server(command, [](ServerProcess& server) {
      std::vector<std::unique_ptr<Client>> clients;
      for (int i = 0; i < 60; ++i) {
        clients.push_back(std::make_unique<Client>(server.address()));
        clients.back()->send("hello");
      }
      CHECK(wait_until(patience, [&] { return server.errors().starts_with("cannot accept"); }));
      // One leaves, the next comes in, ten times: not each time after the next tick.
      std::size_t next = 0;
      while (clients[next]->hears_within(100ms)) ++next;
      const auto start = Clock::now();
      for (std::size_t i = 0; i < 10; ++i) {
        clients[i]->close();
        CHECK(clients[next + i]->receive(5) == "hello");
      }
      CHECK(ms_since(start) < 300);
    });
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
    CallLog log(kServer.command, "read");
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

TEST_CASE("eighteen thousand clients at once each get their own bytes") {
  holds([] {
    Subject server = kServer;
    server.clients = 18'000;
    battery::many_at_once(server);
  });
}

TEST_CASE("one slow request delays the reply of every other client") {
  holds([] {
    const std::vector<double> delays = battery::delays_beside_a_slow_request(kServer);
    CAPTURE(delays.front());
    CHECK(delays.front() > 250);  // of the 300 ms; even the quickest
  });
}

TEST_CASE("an idle connection costs at most 1 KiB of memory") {
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
    CHECK(log.count("epoll_ctl") == 20 + 2);  // each client's, the listener's, the pipe's
    for (int i = 0; i < 10; ++i) {
      for (auto& client : clients) client->echo("hello");
    }
    CHECK(log.count("write") >= 20 * 11);
    CHECK(log.count("epoll_ctl") == 20 + 2);
  });
}

TEST_CASE("a connection that epoll has no room for is closed and the others live") {
  holds([] {
    if (POLLER != std::string("epoll")) skip("the poller is kqueue here");
    // The fourth call: after the pipe, the listener and the first client.
    ServerProcess server(under_strace(kServer.command, {"epoll_ctl:error=ENOSPC:when=4"}));
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    CHECK(second.is_closed_within(patience));
    Client third(server.address());
    third.echo("third");
    first.echo("first again");
    CHECK(server.errors().starts_with("cannot watch descriptor"));
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
