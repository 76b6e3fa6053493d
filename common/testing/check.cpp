// Runs the battery against any server: ./tour check CMD...
//
//   ./tour check build/02-thread-per-conn/server
//   ./tour check --clients 1 build/01-blocking/server
//   ./tour check --no-short-reads build/08-netpoller/server
//   ./tour check python3 my_server.py {port}
#include <fmt/core.h>

#include <cstdio>
#include <string>
#include <vector>

#include "common/socket/options.h"
#include "common/testing/battery.h"

namespace {

// Whether the server's --help has the flag, and not only a longer one. A server with
// a {port} is not asked: what it would make of --help, nobody knows.
bool has_flag(const Command& command, const std::string& flag) {
  if (command.port_is_given()) return false;
  return run_to_end(command.with({"--help"}), 2s).output.find(flag + " ") != std::string::npos;
}

void run(const battery::Named& behaviour, const Subject& subject) {
  const std::string flag = behaviour.flags;
  if (!flag.empty() && !has_flag(subject.command, flag)) skip("the server has no {}", flag);
  behaviour.run(subject);
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t clients = 1000;
  bool no_short_reads = false;
  std::string only;
  Options options(
      "Runs the battery against the server that the command after the flags starts. A {port} in\n"
      "it becomes a free port; without one, \"--port 0\" is appended, and the server must print\n"
      "\"listening on ADDRESS:PORT\".");
  options.add("clients", clients, "clients that it serves at once; 1: one after the other");
  options.add("no-short-reads", no_short_reads,
              "inject no short reads: the server relies on what epoll(7) says about them");
  options.add("only", only, "the one behaviour to run, by its name");
  Subject subject;
  subject.command.argv = options.parse_command(argc, argv);
  subject.clients = clients;
  subject.short_reads = !no_short_reads;
  if (subject.command.argv.empty()) {
    fmt::print(stderr, "{}: no command to start a server with; see --help\n", argv[0]);
    return 2;
  }

  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const battery::Named& behaviour : battery::all()) {
    if (!only.empty() && only != behaviour.name) continue;
    fmt::print("{:<26}", behaviour.name);
    (void)std::fflush(stdout);
    try {
      run(behaviour, subject);
      ++passed;
      fmt::print("pass\n");
    } catch (const Skipped& reason) {
      ++skipped;
      fmt::print("skipped: {}\n", reason.what());
    } catch (const std::exception& failure) {
      ++failed;
      fmt::print("FAIL: {}\n", failure.what());
    }
  }
  if (passed + failed + skipped == 0) {
    fmt::print(stderr, "{}: no behaviour is called '{}'\n", argv[0], only);
    return 2;
  }
  fmt::print("{} passed, {} failed, {} skipped\n", passed, failed, skipped);
  return failed == 0 ? 0 : 1;
}
