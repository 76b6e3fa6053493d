// 07-worker-pool: slow requests beside quick ones. The rest of what the server is held to is in
// common/testing/chapter_test.cpp: the battery with ten thousand clients; shutdown; many
// connections on one thread; idle timeout, order and slow handlers. Its classes are tested by
// pool_test.cpp, and by loop_test.cpp and poller_test.cpp there.
#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "common/testing/chapter.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 10'000};

TEST_CASE("one-request-a-worker: three slow requests, two workers: two at once, then the third") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "300ms", "--workers", "2"}));
    auto clients = connect_clients(server.address(), 3);
    for (Client& client : clients) client.echo("hello");
    const auto start = Clock::now();
    for (Client& client : clients) client.send("#");
    const auto answered = [&] {  // in any order: epoll promises none
      return std::count_if(clients.begin(), clients.end(),
                           [](const Client& client) { return client.hears_within(0ms); });
    };
    CHECK(wait_until(550ms, [&] { return answered() == 2; }));  // not one after the other
    CHECK(wait_until(patience, [&] { return answered() == 3; }));
    CHECK(ms_since(start) >= 590);
  });
}

TEST_CASE("stop-jobs: SIGTERM, jobs are under way: they are finished, and their replies sent") {
  holds([] {
    const std::vector<std::string> flags = {"--work", "300ms", "--workers", "1", "--queue", "1"};
    ServerProcess server(kServer.command.with(flags));
    // One request is worked on, one is in the queue, two wait for the queue.
    auto clients = connect_clients(server.address(), 4);
    for (Client& client : clients) client.echo("hello");
    for (Client& client : clients) client.send("#");
    server.signal(SIGTERM);
    for (Client& client : clients) CHECK(client.receive_until_end() == "#");
    expect_exit_0(server, 2s);
    CHECK(server.errors() == std::string());
  });
}

TEST_CASE("gone-in-mid-job: clients leave while their jobs run: the server goes on") {
  holds([] {
    ServerProcess server(kServer.command.with({"--work", "1ms", "--queue", "16"}));
    Client witness(server.address());
    for (int i = 0; i < 1000; ++i) {
      Client client(server.address());
      client.send("#");
      if (i % 3 == 0) client.reset();
      if (i % 3 == 1) client.finish_sending();
      if (i % 100 == 0) witness.echo("#still here");
    }
    witness.echo("#still here");
    CHECK(server.running());
    const std::string errors = server.errors();
    CHECK(errors.find("Sanitizer") == std::string::npos);
  });
}
