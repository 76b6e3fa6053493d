// ./tour break 03: what select can watch, and what silent clients cost.
#include <fmt/core.h>
#include <sys/select.h>

#include <cstdio>
#include <exception>

#include "common/testing/battery.h"
#include "common/testing/cost.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};
constexpr std::size_t kClients = 1'100;

void limit() {
  Swarm::need_descriptors(kClients);
  fmt::print(
      "{} clients come to a server that had descriptors open when it started (FD_SETSIZE: {}):\n\n",
      kClients, FD_SETSIZE);
  fmt::print("{:>16}{:>10}{:>10}\n", "open at start", "served", "refused");
  for (const std::size_t inherited : {0u, 500u, 1'000u}) {
    Command command = kServer;
    command.inherited = inherited;
    ServerProcess server(command);
    Swarm swarm(server.address(), kClients, battery::seed());
    const std::size_t served = swarm.connect_as_many_as_it_serves(milliseconds(1000));
    fmt::print("{:>16}{:>10}{:>10}\n", inherited, served, kClients - served);
    (void)std::fflush(stdout);
  }
}

void cost() { print_costs_beside_idle(kServer, {100u, 300u, 600u, 900u}); }

}  // namespace

int main() {
  try {
    limit();
    cost();
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
