#include "common/testing/cost.h"

#include <fmt/core.h>

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "common/testing/battery.h"
#include "common/testing/swarm.h"

namespace {

// As long as it is there, this thread and the processes that it starts have one processor
// between them. To wake a client on another one may cost more than the message, and it is
// chance who is where. Source: sched_setaffinity(2); elsewhere it stays chance.
class OneProcessor {
 public:
  OneProcessor() {
#ifdef __linux__
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(sched_getcpu()), &one);
    if (sched_getaffinity(0, sizeof before_, &before_) == 0)
      (void)sched_setaffinity(0, sizeof one, &one);
#endif
  }
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;
  ~OneProcessor() {
#ifdef __linux__
    (void)sched_setaffinity(0, sizeof before_, &before_);
#endif
  }

#ifdef __linux__
 private:
  cpu_set_t before_{};
#endif
};

// Microseconds of CPU, user and system, that the server spends on one message of 64
// bytes, while each client of the swarm sends `rounds` of them: all clients at once, each
// waiting for its echo.
double cpu_per_message(const ServerProcess& server, Swarm& swarm, std::size_t rounds) {
  const auto before = server.usage().cpu;
  for (std::size_t i = 0; i < rounds; ++i)
    swarm.exchange({.bytes = 64, .smallest_chunk = 64, .largest_chunk = 64});
  const std::chrono::duration<double, std::micro> spent = server.usage().cpu - before;
  return spent.count() / double(swarm.size() * rounds);
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::array<double, 3> in_turns(std::size_t pairs, const std::function<double()>& first,
                               const std::function<double()>& second) {
  std::array<std::vector<double>, 3> seen;
  for (std::size_t i = 0; i < pairs; ++i) {
    seen[0].push_back(first());
    seen[1].push_back(second());
    seen[2].push_back(seen[1].back() / seen[0].back());
  }
  return {median(seen[0]), median(seen[1]), median(seen[2])};
}

Costs cost_beside_idle(const Command& command, std::size_t busy, std::size_t idle,
                       std::size_t messages, std::size_t pairs) {
  Swarm::need_descriptors(2 * busy + idle);
  const OneProcessor one_processor;
  ServerProcess quiet(command);
  ServerProcess crowded(command);
  Swarm crowd(crowded.address(), idle, battery::seed());
  crowd.connect();
  Swarm alone(quiet.address(), busy, battery::seed());
  Swarm beside(crowded.address(), busy, battery::seed());
  alone.connect();
  beside.connect();
  const std::size_t rounds = messages / busy;
  const auto [first, second, ratio] = in_turns(
      pairs, [&] { return cpu_per_message(quiet, alone, rounds); },
      [&] { return cpu_per_message(crowded, beside, rounds); });
  return {first, second, ratio};
}

void print_costs_beside_idle(const Command& command, std::initializer_list<std::size_t> idle) {
  constexpr int kPairs = 11;
  fmt::print(
      "\nOne client sends and others are silent; CPU per 64-byte message, medians of {}:\n\n",
      kPairs);
  fmt::print("{:>10}{:>14}{:>14}{:>10}\n", "silent", "beside none", "beside them", "ratio");
  for (const std::size_t count : idle) {
    const Costs costs = cost_beside_idle(command, 1, count, 2'000, kPairs);
    fmt::print("{:>10}{:>14.1f}{:>14.1f}{:>10.2f}\n", count, costs.alone, costs.beside_idle,
               costs.ratio);
    (void)std::fflush(stdout);
  }
}
