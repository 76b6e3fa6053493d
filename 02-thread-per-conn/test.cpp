// 02-thread-per-conn: the battery with ten thousand clients, and what a thread costs.
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {
// ThreadSanitizer knows at most 8,128 threads.
const Subject kServer{.command = {.argv = {SERVER}, .environment = {}},
                      .clients = kThreadSanitizer ? 2'000u : 10'000u};
}  // namespace

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
  holds(kServer, battery::out_of_memory);
}
TEST_CASE("a port in use is said in one line") { holds(kServer, battery::port_in_use); }
TEST_CASE("a wrong flag is said in one line") {
  holds(kServer, battery::misuse);
  holds([] {
    battery::expect_refusal(kServer.command.with({"--max-connections", "0"}), 2,
                            "--max-connections takes a number from 1 to");
  });
}

// The chapter's own claims.

TEST_CASE("a second client is served while the first one stays") {
  holds([] {
    ServerProcess server(kServer.command);
    Client first(server.address());
    first.echo("first");
    Client second(server.address());
    second.echo("second");
    first.echo("first again");
  });
}

TEST_CASE("each connection is a thread that ends with it") {
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

TEST_CASE("ten thousand threads take much address space and little memory") {
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
    // 2 MiB or more by default (ulimit -s; 8 MiB on most systems), against a few KiB touched.
    CHECK(per_client(before.address_space, after.address_space) > 1000);
    CHECK(per_client(before.resident, after.resident) < 64);
  });
}

TEST_CASE("beyond --max-connections a client waits until one leaves") {
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

TEST_CASE("a thread that cannot be started is waited for") {
  holds([] {
    if (kSanitized) skip("a sanitizer needs more address space than the limit allows");
    // 400 MB of address space are enough for some 40 stacks of 8 MiB.
    const Command cramped = kServer.command.under(
        {"sh", "-c", "ulimit -s 8192 && ulimit -v 400000 && exec \"$@\"", "sh"});
    const Run probe =
        run_to_end({.argv = {"sh", "-c", "ulimit -s 8192 && ulimit -v 400000"}, .environment = {}});
    if (probe.exit.code != 0) skip("the address space cannot be limited here");
    battery::with_server(cramped, [](ServerProcess& server) {
      std::vector<std::unique_ptr<Client>> clients;
      for (int i = 0; i < 100; ++i) {
        clients.push_back(std::make_unique<Client>(server.address()));
        clients.back()->send("hello");
      }
      CHECK(wait_until(patience,
                       [&] { return server.errors().starts_with("cannot start a thread"); }));
      CHECK(server.cpu_percent(1s) < 10);
      CHECK_FALSE(clients.back()->hears_within(0ms));
      // One after the other leaves, and the last is served too.
      for (auto& client : clients) {
        CHECK(client->receive(5) == "hello");
        client->echo("still served");
        client->close();
      }
    });
  });
}

TEST_CASE("SIGTERM and SIGINT end it on the spot") {
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
