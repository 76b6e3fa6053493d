// ./tour break 02: what a thread for each client costs, up to ten thousand.
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "common/testing/battery.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

// The kernel stacks of all threads on this machine, in bytes; 0 without /proc.
std::size_t kernel_stacks() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::size_t value = 0;
  while (meminfo >> key) {
    if (key == "KernelStack:" && meminfo >> value) return value * 1024;
    meminfo.ignore(4096, '\n');
  }
  return 0;
}

double mib(std::size_t bytes) { return double(bytes) / (1 << 20); }

void measure(std::size_t clients) {
  Swarm::need_descriptors(clients);
  const std::size_t stacks_before = kernel_stacks();
  ServerProcess server({.argv = {SERVER}, .environment = {}});
  const Usage before = server.usage();
  Swarm swarm(server.address(), clients, battery::seed());
  swarm.connect();
  const Usage held = server.usage();
  const std::size_t stacks = kernel_stacks() - std::min(kernel_stacks(), stacks_before);

  constexpr int kRounds = 5;
  const std::size_t switches = server.context_switches();
  for (int i = 0; i < kRounds; ++i)
    swarm.exchange({.bytes = 64, .smallest_chunk = 64, .largest_chunk = 64});
  const double per_message =
      double(server.context_switches() - switches) / double(clients * kRounds);
  const double cpu =
      std::chrono::duration<double, std::micro>(server.usage().cpu - held.cpu).count();

  fmt::print("{:>8}{:>9}{:>15.1f}{:>15.1f}{:>15.1f}{:>15.1f}{:>14.1f}{:>14.1f}\n", clients,
             held.threads, mib(held.address_space - before.address_space),
             mib(held.resident - before.resident), mib(stacks),
             mib(held.page_tables - before.page_tables), per_message,
             cpu / double(clients * kRounds));
  (void)std::fflush(stdout);
}

}  // namespace

int main() {
  fmt::print(
      "What clients cost a server that has a thread for each (MiB more than without clients;\n"
      "per 64-byte message: context switches, microseconds of CPU):\n\n");
  fmt::print("{:>8}{:>9}{:>15}{:>15}{:>15}{:>15}{:>14}{:>14}\n", "clients", "threads",
             "address space", "resident", "kernel stacks", "page tables", "switches/msg",
             "CPU us/msg");
  try {
    for (const std::size_t clients : {1u, 100u, 1000u, 10'000u}) measure(clients);
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
