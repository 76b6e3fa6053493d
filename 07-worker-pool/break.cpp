// ./tour break 07: as many slow requests as workers, then more; and what it costs to hand
// work over.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "common/testing/client.h"
#include "common/testing/cost.h"
#include "common/testing/server_process.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};

std::vector<std::unique_ptr<Client>> connected(const ServerProcess& server, int count) {
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < count; ++i) {
    clients.push_back(std::make_unique<Client>(server.address()));
    clients.back()->echo("hello");
  }
  return clients;
}

// Sends `slow` requests to two workers at the same time, and then a quick one.
void one_more(int slow) {
  ServerProcess server(kServer.with({"--work", "300ms", "--workers", "2"}));
  const auto clients = connected(server, slow);
  const auto quick = connected(server, 1);
  const auto start = Clock::now();
  for (const auto& client : clients) client->send("#");
  quick[0]->echo("hello");
  const double quick_after = ms_since(start);
  std::string times;
  int answered = 0;
  wait_until(patience, [&] {
    const auto now = std::count_if(clients.begin(), clients.end(), [](const auto& client) {
      return client->hears_within(milliseconds(0));
    });
    for (; answered < now; ++answered) times += fmt::format("{:>8.0f}", ms_since(start));
    return answered == slow;
  });
  fmt::print("{:>12}{:>12.1f}      {}\n", slow, quick_after, times);
}

struct Cost {
  double cpu;      // microseconds a message, of the server
  double elapsed;  // microseconds a message, by the clock
};

// 100 clients send a message each, at the same time, 200 times.
Cost cost_of(const ServerProcess& server, const std::vector<std::unique_ptr<Client>>& clients,
             const std::string& message) {
  constexpr int kRounds = 200;
  const auto cpu = server.usage().cpu;
  const auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i) {
    for (const auto& client : clients) client->send(message);
    for (const auto& client : clients) client->receive(message.size());
  }
  const double messages = kRounds * double(clients.size());
  const std::chrono::duration<double, std::micro> spent = server.usage().cpu - cpu;
  return {spent.count() / messages, 1000 * ms_since(start) / messages};
}

void hand_over() {
  constexpr int kPairs = 11;
  fmt::print(
      "\n100 clients, 64-byte messages, no work at all: microseconds a message, medians of {}\n\n",
      kPairs);
  ServerProcess server(kServer);
  const auto clients = connected(server, 100);
  std::array<std::vector<double>, 2> cpu;
  std::array<std::vector<double>, 2> elapsed;
  std::vector<double> ratios;
  for (int i = 0; i < kPairs; ++i) {
    for (const std::size_t how : {0u, 1u}) {
      const Cost cost = cost_of(server, clients, std::string(64, how == 0 ? '-' : '#'));
      cpu[how].push_back(cost.cpu);
      elapsed[how].push_back(cost.elapsed);
    }
    ratios.push_back(cpu[1].back() / cpu[0].back());
  }
  fmt::print("{:<28}{:>12}{:>14}\n", "", "CPU", "by the clock");
  fmt::print("{:<28}{:>12.1f}{:>14.1f}\n", "done on the loop", median(cpu[0]), median(elapsed[0]));
  fmt::print("{:<28}{:>12.1f}{:>14.1f}\n", "handed to a worker", median(cpu[1]),
             median(elapsed[1]));
  fmt::print("{:<28}{:>12.2f}  (CPU, the median of the pairs)\n", "ratio", median(ratios));
}

}  // namespace

int main() {
  try {
    fmt::print("Two workers, requests of 300 ms sent at once; ms until they are answered:\n\n");
    fmt::print("{:>12}{:>12}      {}\n", "slow ones", "a quick one", "the slow ones");
    for (const int slow : {1, 2, 3, 5}) one_more(slow);
    hand_over();
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
