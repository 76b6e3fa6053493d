// 03-select: what is special about this chapter: the two limits of select. The rest of what the
// server is held to is in common/testing/chapter_test.cpp: the battery with a thousand clients,
// shutdown, and many connections on one thread.
#include <sys/select.h>

#include <string>

#include "common/testing/chapter.h"
#include "common/testing/cost.h"
#include "common/testing/swarm.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 1'000};

TEST_CASE("fd-setsize: a descriptor reaches FD_SETSIZE: refused, existing connections are served") {
  holds([] {
    Swarm::need_descriptors(1'100);
    battery::with_server(kServer.command, [](ServerProcess& server) {
      const std::size_t places = FD_SETSIZE - server.usage().descriptors;
      Swarm swarm(server.address(), 1'100, battery::seed());
      CHECK(swarm.connect_as_many_as_it_serves(1s) == places);
      swarm.exchange({.bytes = 1'000});
      const std::string said = server.errors();
      CHECK(said == "cannot watch descriptor 1024: refused, as others will be\n");
    });
  });
}

TEST_CASE("fd-setsize-value: few connections, large descriptors: the limit is the value") {
  holds([] {
    Swarm::need_descriptors(1'100);
    Command command = kServer.command;
    command.inherited = 1'000;
    battery::with_server(command, [](ServerProcess& server) {
      const std::size_t places = FD_SETSIZE - server.usage().descriptors;
      CHECK(places < 24);
      Swarm swarm(server.address(), 40, battery::seed());
      CHECK(swarm.connect_as_many_as_it_serves(1s) == places);
    });
    command.inherited = 1'030;
    battery::expect_refusal(command.with({"--port", "0"}), 1, "too many open descriptors");
  });
}

TEST_CASE("cost-beside-idle: 900 idle connections: a message costs half as much again, or more") {
  holds([] {
    if (kSanitized) skip("time is the sanitizer's here");
    const Costs costs = cost_beside_idle(kServer.command, 1, 900, 1'000, 5);
    CAPTURE(costs.alone);
    CAPTURE(costs.beside_idle);
    CHECK(costs.ratio > 1.5);
  });
}
