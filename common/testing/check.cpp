// Runs the battery against any server: ./tour check CMD...
//
//   ./tour check build/02-thread-per-conn/server
//   ./tour check --clients 1 build/01-blocking/server
//   ./tour check --no-short-reads build/08-netpoller/server
//   ./tour check --only half-close --only idle python3 my_server.py {port}
//
// Each behaviour runs in a process of its own: a server that kills its parent, or makes
// the attack itself crash, fails that one.
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "common/socket/options.h"
#include "common/testing/battery.h"
#ifdef __linux__
#include <sys/prctl.h>

#include <csignal>
#endif

namespace {

enum Outcome { passed, failed, not_listening, skipped, kOutcomes };
constexpr std::array<const char*, kOutcomes> kNames = {"pass", "fail", "fail", "skip"};

struct Result {
  Outcome outcome;
  std::string reason;
};

// Whether the server's --help has the flag, and not only a longer one. A server with
// a {port} is not asked: what it would make of --help is unknown.
bool has_flag(const Command& command, const std::string& flag) {
  if (command.port_is_given()) return false;
  return run_to_end(command.with({"--help"}), 2s).output.find(flag + " ") != std::string::npos;
}

Result attempt(const battery::Named& behaviour, const Subject& subject) {
  const std::string flag = behaviour.flags;
  try {
    if (!flag.empty() && !has_flag(subject.command, flag)) skip("the server has no {}", flag);
    behaviour.run(subject);
    return {passed, ""};
  } catch (const Skipped& reason) {
    return {skipped, reason.what()};
  } catch (const NotListening& failure) {
    return {not_listening, failure.what()};
  } catch (const std::exception& failure) {
    return {failed, failure.what()};
  }
}

// Attempts it in a process of its own, whose exit code is the outcome. The reason comes
// through a pipe, which holds 4 KiB and more: Failure and Skipped are cut to that.
Result attempt_apart(const battery::Named& behaviour, const Subject& subject) {
  std::array<int, 2> ends;
  if (::pipe(ends.data()) != 0) throw std::system_error(errno, std::system_category(), "pipe");
  const Fd from(ends[0]);
  Fd to(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) throw std::system_error(errno, std::system_category(), "fork");
  if (pid == 0) {
#ifdef __linux__
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // the thread that forks here is check itself
#endif
    const Result result = attempt(behaviour, subject);
    const ssize_t n = ::write(to.get(), result.reason.data(), result.reason.size());
    std::_Exit(n < 0 ? int{failed} : int{result.outcome});
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (!end_children()) return {failed, "processes that the server started cannot be ended"};
  if (const Exit exit = exit_of(status); exit.signalled || exit.code >= kOutcomes)
    return {failed, "the process that attacks the server ended: " + exit.text()};
  std::string reason(8192, '\0');
  to.reset();
  const ssize_t size = ::read(from.get(), reason.data(), reason.size());
  reason.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  return {static_cast<Outcome>(WEXITSTATUS(status)), reason};
}

// A JSON string. What a server wrote may be any bytes: those with a meaning in JSON, and
// those that are not printable ASCII, become \u00XX.
std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\')
      json += c;
    else
      json += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
  }
  return json + '"';
}

// The behaviours to run: all, or those named by id (or by title, as before there were ids).
std::vector<battery::Named> choose(const std::vector<std::string>& only) {
  const auto& all = battery::all();
  std::vector<battery::Named> chosen = only.empty() ? all : std::vector<battery::Named>();
  for (const std::string& name : only) {
    const auto found = std::find_if(all.begin(), all.end(), [&name](const battery::Named& known) {
      return name == known.id || name == known.title;
    });
    if (found == all.end()) throw std::invalid_argument(name);
    chosen.push_back(*found);
  }
  return chosen;
}

void print(const Result& result, const char* id) {
  switch (result.outcome) {
    case passed: fmt::print("pass\n"); break;
    case skipped: fmt::print("skipped: {}\n", result.reason); break;
    default:
      fmt::print("FAIL: {}\n{:<26}(again: --only {} --seed {})\n", result.reason, "", id,
                 battery::run_seed);
  }
}

void print_json(const Result& result, const battery::Named& behaviour, double seconds, bool first) {
  fmt::print(R"({}{{"id": "{}", "title": "{}", "outcome": "{}", "seconds": {:.3f}, "reason": {}}})",
             first ? "\n" : ",\n", behaviour.id, behaviour.title, kNames[result.outcome], seconds,
             quoted(result.reason));
}

int run(const std::vector<battery::Named>& behaviours, const Subject& subject, bool json) {
  adopt_orphans();
  std::array<int, kOutcomes> count = {};
  if (json) fmt::print(R"({{"seed": {}, "behaviours": [)", battery::run_seed);
  for (const battery::Named& behaviour : behaviours) {
    if (!json) fmt::print("{:<26}", behaviour.id);
    (void)std::fflush(stdout);
    const auto start = Clock::now();
    const bool hopeless = count[not_listening] == 2 && count[passed] + count[failed] == 0;
    const Result result = hopeless ? Result{skipped, "the server failed to listen, twice"}
                                   : attempt_apart(behaviour, subject);
    if (json)
      print_json(result, behaviour, ms_since(start) / 1000, &behaviour == behaviours.data());
    else
      print(result, behaviour.id);
    ++count[result.outcome];
  }
  const int failures = count[failed] + count[not_listening];
  const char* totals = json ? "\n],\n\"passed\": {}, \"failed\": {}, \"skipped\": {}}}\n"
                            : "{} passed, {} failed, {} skipped\n";
  fmt::print(fmt::runtime(totals), count[passed], failures, count[skipped]);
  if (failures > 0) return 1;
  return count[passed] == 0 ? 77 : 0;  // 77: what automake and CTest take for "skipped"
}

}  // namespace

int main(int argc, char** argv) {
  Subject subject;
  bool no_short_reads = false;
  bool json = false;
  std::vector<std::string> only;
  Options options(
      "Runs the battery against the server that the command after the flags starts. A {port} in\n"
      "it becomes a free port; without one, \"--port 0\" is appended, and the server must print\n"
      "\"listening on ADDRESS:PORT\". Exit code: 0 passed, 1 failed, 77 all skipped.");
  options.add("clients", subject.clients, "clients that it serves at once; 1: one after the other");
  options.add("no-short-reads", no_short_reads,
              "inject no short reads: the server relies on what epoll(7) says about them");
  options.add("only", only, "a behaviour to run, by its id; may be given again");
  options.add("json", json, "print one JSON object");
  options.add("seed", battery::run_seed, "repeats a failure; 0: a new seed",
              std::numeric_limits<std::size_t>::max());
  subject.command.argv = options.parse_command(argc, argv);
  subject.short_reads = !no_short_reads;
  if (subject.command.argv.empty()) {
    fmt::print(stderr, "{}: no command to start a server with; see --help\n", argv[0]);
    return 2;
  }
  battery::run_seed = battery::seed();  // the one that was given, or one for all behaviours
  std::vector<battery::Named> behaviours;
  try {
    behaviours = choose(only);
  } catch (const std::invalid_argument& name) {
    fmt::print(stderr, "{}: no behaviour has the id '{}'\n", argv[0], name.what());
    return 2;
  }
  return run(behaviours, subject, json);
}
