// 01-blocking: the battery as far as one client at a time can hold it, and the limit.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <string>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "common/testing/server_process.h"

namespace {
const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 1};
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
TEST_CASE("clients that send and never read cost neither memory nor CPU") {
  holds(kServer, battery::back_pressure);
}
TEST_CASE("a thousand silent clients cost no CPU") { holds(kServer, battery::idle); }
TEST_CASE("a reset ends one connection and nothing else") { holds(kServer, battery::reset); }
TEST_CASE("a client that closes without reading does no harm") {
  holds(kServer, battery::close_without_reading);
}
TEST_CASE("five thousand clients later nothing is left behind") { holds(kServer, battery::churn); }
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
TEST_CASE("a wrong flag is said in one line") { holds(kServer, battery::misuse); }

// The chapter's own claims.

TEST_CASE("a second client is connected by the kernel and waits until the first one leaves") {
  holds([] {
    ServerProcess server(kServer.command);
    Client first(server.address());
    first.echo("first");

    Client second(server.address());  // returns: connected, though nobody accepted it
    second.send("second");            // succeeds: the kernel keeps the bytes
    CHECK_FALSE(second.hears_within(300ms));
    first.echo("the server is with me");
    CHECK_FALSE(second.hears_within(300ms));

    first.close();
    CHECK(second.receive(6) == "second");
  });
}

TEST_CASE("a client that says nothing keeps all others out") {
  holds([] {
    ServerProcess server(kServer.command);
    const Client silent(server.address());
    Client other(server.address());
    other.send("hello");
    CHECK_FALSE(other.hears_within(500ms));
    if (server.usage().descriptors != 5) {  // 0, 1, 2, the listener, and the silent one
      fail("{} descriptors are open: who else was accepted?", server.usage().descriptors);
    }
  });
}

TEST_CASE("without a descriptor it waits and looks again") {
#ifdef __linux__
  holds([] {
    ServerProcess server(kServer.command);
    const auto set_limit = [&server](rlim_t limit) {
      rlimit now = {};
      REQUIRE(::prlimit(server.pid(), RLIMIT_NOFILE, nullptr, &now) == 0);
      now.rlim_cur = limit;
      REQUIRE(::prlimit(server.pid(), RLIMIT_NOFILE, &now, nullptr) == 0);
    };
    // The accept that the server waits in has its descriptor already: it is the next
    // one that fails.
    set_limit(4);  // 0, 1, 2 and the listener
    Client(server.address()).echo("the last one in");
    Client client(server.address());
    client.send("hello");
    CHECK(wait_until(patience, [&] { return !server.errors().empty(); }));
    CHECK(server.cpu_percent(2500ms) < 10);
    CHECK_FALSE(client.hears_within(0ms));
    const std::string log = server.errors();
    CHECK(log.starts_with("cannot accept: Too many open files"));
    CHECK(std::count(log.begin(), log.end(), '\n') <= 4);

    set_limit(5);
    CHECK(client.receive(5) == "hello");
  });
#else
  holds([] { skip("no prlimit here"); });
#endif
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
