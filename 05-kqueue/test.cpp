// 05-kqueue: what is special about this chapter. The rest of what the server is held to is in
// common/testing/chapter_test.cpp: the battery with ten thousand clients, shutdown, many
// connections on one thread, and what idle connections cost.
#include <fmt/core.h>

#include <csignal>
#include <string>
#include <thread>

#include "common/testing/chapter.h"
#include "common/testing/faults.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 10'000};

TEST_CASE("stop-at-start: SIGTERM while the server starts: it ends with exit code 0") {
  holds([] {
    // The handler is installed, and for two seconds no filter follows: libkqueue's first call for
    // the listener, whose filter is the first, takes so long.
    const Command slow = under_strace(kServer.command, {"getsockopt:delay_enter=2000000:when=1"});
    Command command = slow.under({"sh", "-c", "(sleep 1; kill -TERM $$) & exec \"$@\"", "sh"});
    command = command.with({"--port", "0"});
    const Run run = run_to_end(command);
    CHECK(run.exit.text() == "exit code 0");
  });
}

TEST_CASE("stop-backlog: SIGTERM, a client in the backlog: it is served") {
  holds([] {
    // The write of the first echo takes half a second to return. When the server waits again,
    // the signal's event comes before the listener's.
    ServerProcess server(under_strace(kServer.command, {"write:delay_exit=500000:when=2"}));
    Client first(server.address());
    first.echo("hello");
    server.signal(SIGTERM);
    std::this_thread::sleep_for(100ms);
    Client second(server.address());
    second.echo("hello");
    CHECK(second.is_closed_within(2s));
    expect_exit_0(server, 2s);
  });
}

TEST_CASE("stop-long-backlog: SIGTERM, a thousand clients in the backlog: all are served") {
  holds([] {
#ifdef __linux__
    constexpr std::size_t kClients = 1000;
#else
    constexpr std::size_t kClients = 120;  // macOS and FreeBSD have a backlog of 128
#endif
    ServerProcess server(kServer.command);
    server.freeze();
    auto clients = connect_clients(server.address(), kClients);
    for (Client& client : clients) client.send("hello");
    server.signal(SIGTERM);
    server.thaw();
    for (Client& client : clients) CHECK(client.receive_until_end() == "hello");
    expect_exit_0(server, 2s);
  });
}

TEST_CASE("closed-at-once: both sides have finished: the connection is closed before the tick") {
  holds([] {
    ServerProcess server(kServer.command);
    const auto start = Clock::now();
    for (int i = 0; i < 10; ++i) {
      Client client(server.address());
      client.echo("hello");
      client.finish_sending();
      CHECK(client.receive_until_end().empty());
    }
    CHECK(ms_since(start) < 500);  // not each time with the next tick, which takes about 100 ms
  });
}

TEST_CASE("filter-refused: a filter cannot be added: the connection is closed, others are served") {
  holds([] {
#ifdef __linux__
    // Counts the calls that libkqueue makes for a server with one client. The next call is for
    // the second client. The failure is reported with the next event: the third client's, or a
    // tick.
    const CallLog log(kServer.command, "epoll_ctl");
    std::size_t calls = 0;
    {
      ServerProcess server(log.command());
      Client only(server.address());
      only.echo("first");
      calls = log.count("epoll_ctl");
    }
    ServerProcess server(
        under_strace(kServer.command, {fmt::format("epoll_ctl:error=ENOSPC:when={}", calls + 1)}));
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    Client third(server.address());
    third.echo("third");
    CHECK(second.is_closed_within(patience));
    first.echo("first again");
#else
    skip("no strace here to make a change fail");
#endif
  });
}
