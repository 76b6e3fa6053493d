// Compares what a 64-byte message costs two servers. Measures them in turns.
//
//   build/common/cost build/04-epoll/server build/common/floor-server
//   build/common/cost --idle 10000 build/04-epoll/server
//   build/common/cost "build/08-netpoller/server --workers 1" build/common/floor-server
//
// Two programs: with 100, 1,000 and 10,000 clients each, in the closed loop of `./tour
// bench`. One program: 100 busy clients, alone and beside --idle others. The machine's
// speed drifts, so the ratio counts, which is the median of the pairs' ratios.
#include <fmt/core.h>

#include <chrono>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "common/bench/measure.h"
#include "common/socket/options.h"
#include "common/testing/cost.h"

namespace {

// "build/08-netpoller/server --workers 1": a program and its flags, divided by spaces.
Command command_of(const std::string& words) {
  Command command;
  std::istringstream stream(words);
  for (std::string word; stream >> word;) command.argv.push_back(word);
  return command;
}

double cost_of(const std::string& program, std::size_t clients) {
  LoadPlan plan;
  plan.clients = clients;
  plan.warmup = std::chrono::milliseconds(300);  // both times are those of bench.py
  plan.duration = std::chrono::milliseconds(500);
  const Measurement m = measure(command_of(program), plan);
  if (m.load.held < clients)
    fail("{} serves {} of {} clients: {}", program, m.load.held, clients, m.load.first_problem);
  if (m.load.mismatched_bytes > 0)
    fail("{}: {} bytes came back changed", program, m.load.mismatched_bytes);
  if (m.cpu_us == 0) skip("without /proc, the CPU time of a server is unknown");
  return m.cpu_us;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t pairs = 9;
  std::size_t idle = 10'000;
  std::size_t clients = 0;
  std::size_t busy = 100;
  Options options(
      "Compares what a message costs: SERVER and OTHER, or SERVER beside idle clients.");
  options.add("pairs", pairs, "measurements of each server, taken in turns");
  options.add("clients", clients, "clients, for two servers; 0: 100, 1,000 and 10,000");
  options.add("idle", idle, "idle clients beside the busy ones, for one server");
  options.add("busy", busy, "busy clients, for one server");
  const std::vector<std::string> programs = options.parse_command(argc, argv);
  try {
    if (programs.size() == 1) {
      print_costs_beside_idle(command_of(programs[0]), {idle}, busy, 20'000, pairs);
    } else if (programs.size() == 2) {
      fmt::print(
          "microseconds of CPU per 64-byte message, medians of {}; ratio: of the pairs\n"
          " clients         first        second     ratio\n",
          pairs);
      using Sizes = std::vector<std::size_t>;
      for (const std::size_t size : clients > 0 ? Sizes{clients} : Sizes{100, 1'000, 10'000}) {
        const Costs costs = in_turns(
            pairs, [&] { return cost_of(programs[1], size); },
            [&] { return cost_of(programs[0], size); });
        print_costs(size, costs.beside_idle, costs.alone, costs.ratio);  // first / second
      }
    } else {
      fmt::print(stderr, "usage: {} [flags] SERVER [OTHER]    (flags: --help)\n", argv[0]);
      return 2;
    }
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
