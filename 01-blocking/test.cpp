// 01-blocking: what is special about this chapter. The rest of what the server is held to, the
// battery as far as one client at a time can meet it, is in common/testing/chapter_test.cpp.
#include <sys/resource.h>

#include <algorithm>
#include <string>

#include "common/testing/chapter.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 1};

TEST_CASE("second-client-waits: a second client connects: it is answered once the first leaves") {
  holds([] {
    ServerProcess server(kServer.command);
    Client first(server.address());
    first.echo("first");

    Client second(server.address());  // returns: connected, though not accepted
    second.send("second");            // succeeds: the kernel keeps the bytes
    CHECK_FALSE(second.hears_within(300ms));
    first.echo("the server is with me");
    CHECK_FALSE(second.hears_within(300ms));

    first.close();
    CHECK(second.receive(6) == "second");
  });
}

TEST_CASE("silent-client: a client is connected and silent: no other is accepted") {
  holds([] {
    ServerProcess server(kServer.command);
    const Client silent(server.address());
    Client other(server.address());
    other.send("hello");
    CHECK_FALSE(other.hears_within(500ms));
    if (server.usage().descriptors != 5) {  // 0, 1, 2, the listener, and the silent client
      fail("{} descriptors are open: who else was accepted?", server.usage().descriptors);
    }
  });
}

TEST_CASE("accept-pause: no free descriptor: the server pauses, then serves the waiting client") {
#ifdef __linux__
  holds([] {
    ServerProcess server(kServer.command);
    const auto set_limit = [&server](rlim_t limit) {
      rlimit now = {};
      REQUIRE(::prlimit(server.pid(), RLIMIT_NOFILE, nullptr, &now) == 0);
      now.rlim_cur = limit;
      REQUIRE(::prlimit(server.pid(), RLIMIT_NOFILE, &now, nullptr) == 0);
    };
    // The server waits in accept, which has its descriptor already. The next accept fails.
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
