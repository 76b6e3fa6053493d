// ./tour break 08: slow requests, a client beside goroutines that compute, what the scheduler
// does, and what a parked goroutine costs.
#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"
#include "net.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};

// Slow requests, all at once, and a quick one after them.
void slow_beside_quick(int slow) {
  ServerProcess server(kServer.with({"--work", "300ms", "--workers", "2"}));
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < slow; ++i) {
    clients.push_back(std::make_unique<Client>(server.address()));
    clients.back()->echo("hello");
  }
  Client quick(server.address());
  quick.echo("hello");
  const auto start = Clock::now();
  for (const auto& client : clients) client->send("#");
  const double quick_took = quick.echo("hello");
  for (const auto& client : clients) client->receive(1);
  fmt::print("{:>12}{:>16.1f}{:>20.0f}\n", slow, quick_took, ms_since(start));
}

// Computes, and yields after each turn.
Task<> hog(std::chrono::microseconds turn, const std::atomic<bool>& over) {
  while (!over) {
    const auto end = Clock::now() + turn;
    while (Clock::now() < end) {
    }
    co_await yield();
  }
}

Task<> echo_beside_hogs(Scheduler& scheduler, Listener& listener, std::chrono::microseconds turn) {
  std::atomic<bool> over = false;
  for (int i = 0; i < 4; ++i) go(hog(turn, over));
  NewConn client = co_await listener.accept();
  for (;;) {
    const Received request = co_await client.conn.read();
    if (request.status != Io::ok) break;
    if (co_await client.conn.write_all(request.bytes()) != Io::ok) break;
  }
  over = true;
  while (scheduler.unfinished() > 1) co_await yield();
}

void beside_hogs(std::chrono::microseconds turn) {
  Scheduler scheduler(2, 1);
  Listener listener(scheduler, {.host = "127.0.0.1", .port = 0});
  std::vector<double> took;
  auto visitor = std::async(std::launch::async, [&, server = local_address(listener.desc->fd())] {
    Client client(server);
    for (int i = 0; i < 500; ++i) {
      took.push_back(client.echo("hello"));
      std::this_thread::sleep_for(milliseconds(2));
    }
  });
  scheduler.run(echo_beside_hogs(scheduler, listener, turn));
  visitor.get();
  std::sort(took.begin(), took.end());
  fmt::print("{:>9} us{:>12.1f}{:>12.1f}{:>12.1f}\n", turn.count(), took[took.size() / 2],
             took[took.size() * 99 / 100], took.back());
}

void what_the_scheduler_does() {
  ServerProcess server(kServer.with({"--workers", "2", "--schedtrace", "500ms"}));
  Swarm swarm(server.address(), 1000, battery::seed());
  swarm.connect();
  const auto end = Clock::now() + milliseconds(1200);
  while (Clock::now() < end) swarm.exchange({.smallest_chunk = 64});
  std::this_thread::sleep_for(milliseconds(700));
  fmt::print("\n1,000 clients, busy for 1.2 s and then silent (--schedtrace 500ms):\n\n{}",
             server.errors());
}

void hold(std::size_t clients) {
  Swarm::need_descriptors(clients);
  for (const bool idle_timeout : {false, true}) {
    ServerProcess server(idle_timeout ? kServer.with({"--idle-timeout", "1h"}) : kServer);
    const Usage before = server.usage();
    Swarm swarm(server.address(), clients, battery::seed());
    swarm.connect();
    const Usage held = server.usage();
    fmt::print("{}{} goroutines parked{}: {:.1f} MiB more than without them, {} B each\n",
               idle_timeout ? "" : "\n", clients, idle_timeout ? ", each with a deadline" : "",
               double(held.resident - before.resident) / (1 << 20),
               (held.resident - before.resident) / clients);
  }
}

}  // namespace

int main() {
  try {
    fmt::print("Two workers, requests of 300 ms sent at once, and a quick one; ms:\n\n");
    fmt::print("{:>12}{:>16}{:>20}\n", "slow ones", "the quick one", "the last slow one");
    for (const int slow : {1, 2, 16, 17}) slow_beside_quick(slow);
    fmt::print("\nA client beside four goroutines that compute, on two workers; ms:\n\n");
    fmt::print("{:>12}{:>12}{:>12}{:>12}\n", "their turn", "p50", "p99", "longest");
    for (const int turn : {100, 1000, 5000}) beside_hogs(std::chrono::microseconds(turn));
    what_the_scheduler_does();
    hold(18'000);
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
