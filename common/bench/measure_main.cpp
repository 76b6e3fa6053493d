// Starts a server, loads it, ends it, and prints one JSON object: what echoload prints,
// and what the server used. ./tour bench is made of many of these.
//
//   build/common/measure --clients 1000 build/04-epoll/server
//   build/common/measure --clients 1 --idle 10000 build/04-epoll/server
//   build/common/measure --rate 20000 go-net-server -address 127.0.0.1:{port}
#include <fmt/core.h>

#include <exception>
#include <string>
#include <vector>

#include "common/bench/measure.h"
#include "common/bench/report.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

Measurement measure_with_progress(const Command& command, LoadPlan plan) {
  const ProgressLine line;
  plan.on_progress = [&](const std::string& text) { line.show(text); };
  return measure(command, plan);
}

int misuse(const char* program, const std::string& reason) {
  fmt::print(stderr, "{}: {}\nusage: {} [flags] CMD...    (flags: --help)\n", program, reason,
             program);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  LoadPlan plan;
  Options options("Starts a server by CMD, loads it, and prints what came of it as JSON.");
  add_flags(options, plan);
  const std::vector<std::string> command = options.parse_command(argc, argv);
  if (command.empty()) return misuse(argv[0], "the command of a server is needed, after the flags");
  if (const std::string wrong = what_is_wrong_with(plan); !wrong.empty()) {
    return misuse(argv[0], wrong);
  }
  try {
    const Measurement m = measure_with_progress({.argv = command, .environment = {}}, plan);
    fmt::print("{}", as_json(plan, m));
    return m.load.mismatched_bytes > 0 || m.load.answered == 0 ? 1 : 0;
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
