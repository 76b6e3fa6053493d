// 02-thread-per-conn: what is special about this chapter: what a thread costs, and what happens
// without one. The rest of what the server is held to, the battery with ten thousand clients, is
// in common/testing/chapter_test.cpp.
#include <string>
#include <vector>

#include "common/testing/chapter.h"
#include "common/testing/swarm.h"

// ThreadSanitizer knows at most 8,128 threads.
const Subject kServer{.command = {.argv = {SERVER}, .environment = {}},
                      .clients = kThreadSanitizer ? 2'000u : 10'000u};

TEST_CASE("second-client-served: a second client connects: it is answered while the first stays") {
  holds([] {
    ServerProcess server(kServer.command);
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    second.echo("second");
    first.echo("first again");
  });
}

TEST_CASE("thread-per-connection: 500 connections: a thread for each, which ends with it") {
  holds([] {
    ServerProcess server(kServer.command);
    // The first thread brings ThreadSanitizer's own along, where there is one.
    Client first(server.address());
    first.echo("hello");
    const std::size_t before = server.usage().threads;
    Swarm swarm(server.address(), 500, battery::seed());
    swarm.connect();
    CHECK(server.usage().threads == before + 500);
    swarm.leave();
    CHECK(wait_until(patience, [&] { return server.usage().threads == before; }));
  });
}

TEST_CASE("thread-memory: ten thousand threads: much address space, little memory") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
    Swarm::need_descriptors(kServer.clients);
    ServerProcess server(kServer.command);
    const Usage before = server.usage();
    Swarm swarm(server.address(), kServer.clients, battery::seed());
    swarm.connect();
    const Usage after = server.usage();
    const auto per_client = [&](std::size_t from, std::size_t to) {
      return (to - from) / kServer.clients / 1024;
    };
    CHECK(after.threads - before.threads == kServer.clients);
    // 2 MiB or more by default (ulimit -s; 8 MiB on most systems), of which a few KiB are used.
    CHECK(per_client(before.address_space, after.address_space) > 1000);
    CHECK(per_client(before.resident, after.resident) < 64);
  });
}

TEST_CASE("max-connections: one client more than --max-connections: it waits until one leaves") {
  holds([] {
    ServerProcess server(kServer.command.with({"--max-connections", "2"}));
    Client first(server.address());
    Client second(server.address());
    first.echo("first");
    second.echo("second");
    Client third(server.address());
    third.send("third");
    CHECK_FALSE(third.hears_within(300ms));
    first.close();
    CHECK(third.receive(5) == "third");
    second.echo("second again");
  });
}

TEST_CASE("max-connections-range: --max-connections 0: a one-line error") {
  holds([] {
    battery::expect_refusal(kServer.command.with({"--max-connections", "0"}), 2,
                            "--max-connections takes a number from 1 to");
  });
}

TEST_CASE("no-thread: no thread can be started: the connection waits until another ends") {
  holds([] {
    if (kSanitized) skip("a sanitizer needs more address space than the limit allows");
    // 400 MB of address space are enough for about 40 stacks of 8 MiB.
    const Command cramped = kServer.command.under(
        {"sh", "-c", "ulimit -s 8192 && ulimit -v 400000 && exec \"$@\"", "sh"});
    const Run probe =
        run_to_end({.argv = {"sh", "-c", "ulimit -s 8192 && ulimit -v 400000"}, .environment = {}});
    if (probe.exit.code != 0) skip("the address space cannot be limited here");
    battery::with_server(cramped, [](ServerProcess& server) {
      auto clients = connect_clients(server.address(), 100);
      for (Client& client : clients) client.send("hello");
      CHECK(wait_until(patience,
                       [&] { return server.errors().starts_with("cannot start a thread"); }));
      CHECK(server.cpu_percent(1s) < 10);
      CHECK_FALSE(clients.back().hears_within(0ms));
      // One after the other leaves, and the last is served too.
      for (Client& client : clients) {
        CHECK(client.receive(5) == "hello");
        client.echo("still served");
        client.close();
      }
    });
  });
}
