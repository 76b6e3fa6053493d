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

// While it exists, this thread and the processes that it starts share one processor. To
// wake a client on another processor may cost more than the message, and chance decides
// what runs where. Source: sched_setaffinity(2). Other systems leave that to chance.
class OneProcessor {
 public:
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;
#ifdef __linux__
  OneProcessor() {
    (void)sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(sched_getcpu()), &one);
    (void)sched_setaffinity(0, sizeof one, &one);
  }
  ~OneProcessor() { (void)sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_{};
#else
  OneProcessor() {}
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

Costs in_turns(std::size_t pairs, const std::function<double()>& first,
               const std::function<double()>& second) {
  std::vector<double> seen[3];
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
  return in_turns(
      pairs, [&] { return cpu_per_message(quiet, alone, rounds); },
      [&] { return cpu_per_message(crowded, beside, rounds); });
}

void print_costs(std::size_t count, double first, double second, double ratio) {
  fmt::print("{:>8}{:>14.2f}{:>14.2f}{:>10.3f}\n", count, first, second, ratio);
  (void)std::fflush(stdout);
}

void print_costs_beside_idle(const Command& command, const std::vector<std::size_t>& idle,
                             std::size_t busy, std::size_t messages, std::size_t pairs) {
  fmt::print(
      "\nmicroseconds of CPU per 64-byte message of {} busy clients, medians of {}; ratio: of the "
      "pairs\n"
      "    idle     none idle   beside idle     ratio\n",
      busy, pairs);
  for (const std::size_t count : idle) {
    const Costs costs = cost_beside_idle(command, busy, count, messages, pairs);
    print_costs(count, costs.alone, costs.beside_idle, costs.ratio);
  }
}
