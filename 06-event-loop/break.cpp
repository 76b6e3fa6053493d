// ./tour break 06: one handler that blocks, and every client waits.
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};

// A hundred clients send "hello" at the same time; one more may ask for slow work.
void round(bool with_slow_request) {
  ServerProcess server(kServer.with({"--work", "300ms"}));
  std::vector<std::unique_ptr<Client>> quick;
  for (int i = 0; i < 100; ++i) {
    quick.push_back(std::make_unique<Client>(server.address()));
    quick.back()->echo("hello");
  }
  Client slow(server.address());
  slow.echo("hello");
  slow.send(with_slow_request ? "#" : "x");
  const auto start = Clock::now();
  std::vector<double> delays;
  for (const auto& client : quick) client->send("hello");
  for (const auto& client : quick) {
    client->receive(5);
    delays.push_back(ms_since(start));
  }
  slow.receive(1);
  std::sort(delays.begin(), delays.end());
  fmt::print("{:<28}{:>12.1f}{:>12.1f}{:>12.1f}\n",
             with_slow_request ? "one request takes 300 ms" : "all requests are quick",
             delays.front(), delays[delays.size() / 2], delays.back());
}

void hold(std::size_t clients) {
  Swarm::need_descriptors(clients);
  ServerProcess server(kServer.with({"--idle-timeout", "1h"}));
  const Usage before = server.usage();
  Swarm swarm(server.address(), clients, battery::seed());
  swarm.connect();
  const Usage held = server.usage();
  fmt::print("\n{} clients, each with its timer: {} thread, {:.1f} MiB more, {} B each\n", clients,
             held.threads, double(held.resident - before.resident) / (1 << 20),
             (held.resident - before.resident) / clients);
}

}  // namespace

int main() {
  try {
    fmt::print("100 clients send at the same time; ms until they are answered:\n\n");
    fmt::print("{:<28}{:>12}{:>12}{:>12}\n", "", "first", "median", "last");
    round(false);
    round(true);
    hold(18'000);
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
