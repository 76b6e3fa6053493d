// The tester is tested: the battery passes a sound server, and catches each mistake
// it is there for. Then foreign servers, and the parts that tests are made of.
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/faults.h"
#include "common/testing/holds.h"
#include "common/testing/swarm.h"

namespace {

Subject broken(const std::string& fault) {
  Subject subject{.command = {.argv = {BROKEN_SERVER}}, .clients = 300};
  if (!fault.empty()) subject.command = subject.command.with({"--fault", fault});
  return subject;
}

// The behaviour must fail on a server with this fault, and say something.
void catches(battery::Behaviour behaviour, const std::string& fault) {
  const milliseconds usual = std::exchange(patience, milliseconds(kSanitized ? 3000 : 1500));
  holds([&] {
    try {
      behaviour(broken(fault));
    } catch (const Failure& failure) {
      INFO(failure.what());
      CHECK(std::string(failure.what()).size() > 10);
      return;
    }
    fail("a server that {} passed", fault);
  });
  patience = usual;
}

// Runs `check` with these arguments, which include the server's command.
Run check(const std::vector<std::string>& arguments) {
  return run_to_end(Command{.argv = {CHECK_PROGRAM}}.with(arguments), 60s);
}

// The message when this command fails to start.
std::string failure_of(const Command& command) {
  try {
    const ServerProcess server(command);
  } catch (const NotListening& failure) {
    return failure.what();
  }
  return "no failure";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// How many of ten thousand reads return less than they could under these faults: dd
// counts them ("9825+175 records in") and goes on when a read fails.
std::size_t short_reads_under(const std::vector<std::string>& faults) {
  const Command dd{.argv = {"dd", "if=/dev/zero", "of=/dev/null", "ibs=100", "obs=2000000",
                            "count=10000", "conv=noerror"},
                   .environment = {"LC_ALL=C"}};
  const std::string report = run_to_end(under_fiu(dd, faults)).errors;
  const std::size_t end = report.rfind(" records in");
  if (end == std::string::npos) fail("dd does not count its reads: {}", report);
  return std::stoul(report.substr(report.rfind('+', end) + 1));
}

bool includes(const std::string& fault, const std::string& point) {
  const std::string name = fault.substr(fault.find('=') + 1, fault.find(',') - fault.find('=') - 1);
  return ::fnmatch(name.c_str(), point.c_str(), 0) == 0;
}

}  // namespace

TEST_CASE("sound: a server without a fault passes the whole battery") {
  for (const battery::Named& behaviour : battery::all()) {
    CAPTURE(behaviour.id);
    holds(broken(""), behaviour.run);
  }
}

#define CAUGHT(behaviour, fault, title)                                         \
  TEST_CASE("caught-" fault ": " title) { catches(battery::behaviour, fault); } \
  static_assert(true, "takes a semicolon")

CAUGHT(one_byte_at_a_time, "waits-for-a-second-byte", "an answer that waits for more");
CAUGHT(any_bytes_any_size, "c-string", "data taken for a C string");
CAUGHT(arbitrary_chunks, "truncates-large-reads", "large reads cut short");
CAUGHT(half_close_slow_reader, "drops-pending-at-eof", "pending output dropped at half-close");
CAUGHT(many_at_once, "mixes-connections", "bytes of one connection sent to another");
CAUGHT(isolation, "blocks-in-write", "a write to one client that stalls the others");
CAUGHT(idle, "write-always-armed", "write interest left armed");
CAUGHT(close_without_reading, "dies-of-sigpipe", "death by SIGPIPE");
CAUGHT(reset, "exits-on-an-error", "exit on a reset");
CAUGHT(churn, "leaks-descriptors", "descriptors that are never closed");
CAUGHT(out_of_descriptors, "spins-without-descriptors", "spinning without descriptors");
CAUGHT(out_of_descriptors, "exits-without-descriptors", "exit without descriptors");
CAUGHT(out_of_descriptors, "never-accepts-again", "never accepting again");
CAUGHT(gone_before_accepted, "accepts-without-end", "accepting without end");
CAUGHT(aborted_accepts, "pauses-on-abort", "a pause after an aborted accept");
CAUGHT(interrupted_calls, "takes-eintr-of-read-for-an-error", "EINTR taken for an error");
CAUGHT(interrupted_calls, "takes-eintr-of-recv-for-an-error",
       "EINTR of another call taken for an error");
CAUGHT(short_writes, "forgets-a-partial-write", "a partial write forgotten");
CAUGHT(out_of_memory, "dies-without-memory", "exit without memory");
CAUGHT(misuse, "lenient-flags", "nonsense taken for a port");
CAUGHT(port_in_use, "complains-on-stdout", "a port in use and exit code 0");
CAUGHT(stop_idle, "waits-for-the-idle", "waiting for idle clients at SIGTERM");
CAUGHT(stop_busy, "drops-everything-at-stop", "bytes dropped at SIGTERM");
CAUGHT(stop_stuck, "stop-without-grace", "waiting for ever at SIGTERM");
CAUGHT(stop_unacknowledged, "takes-written-for-received",
       "what is written taken for received at SIGTERM");
CAUGHT(stop_asked_again, "uses-at-a-signal-what-is-gone",
       "a signal handler that uses what is gone");
CAUGHT(idle_timeout, "starts-no-timer", "no idle timer");
CAUGHT(idle_timeout, "never-restarts-the-timer", "an idle timer that is never restarted");
CAUGHT(slow_handler, "works-in-the-loop", "slow work in the loop");
CAUGHT(order, "quick-overtakes-slow", "a quick request that overtakes a slow one");
CAUGHT(idle_slow_reader, "waits-for-room-to-write", "an idle timeout that waits for POLLOUT");
CAUGHT(idle_left, "keeps-the-timer-of-one-who-left", "the idle timer of a closed connection");
CAUGHT(stop_door, "keeps-listening", "listening on after SIGTERM");
CAUGHT(stop_shortage, "drops-the-backlog-at-stop", "the backlog dropped at SIGTERM");
CAUGHT(stop_stalls, "takes-a-stall-for-a-pause", "a stall taken for a pause of the client");
CAUGHT(signals_blocked, "takes-signals-as-they-come", "signals that stay blocked");
CAUGHT(process_one, "has-no-signal-handler", "no signal handler as process 1");
CAUGHT(keep_alive, "keeps-who-vanished", "no keep-alive");
CAUGHT(stop_blocked, "dies-of-a-second-signal", "death at a second signal");

TEST_CASE("caught-handles-ignored-signals: a handler for a signal that the parent ignores") {
  catches(battery::interrupt_ignored, "takes-signals-as-they-come");
}
TEST_CASE("caught-no-way-out: no way out of a request that blocks") {
  catches(battery::stop_blocked, "works-in-the-loop");
}
TEST_CASE("caught-accepts-on-at-stop: accepting without end at SIGTERM") {
  catches(battery::stop_flood, "accepts-without-end");
}

TEST_CASE("caught-closes-on-rdhup: unread bytes dropped at half-close") {
#ifdef POLLRDHUP
  catches(battery::half_close, "closes-on-rdhup");
#else
  holds([] { skip("there is no POLLRDHUP here to misread"); });
#endif
}
TEST_CASE("caught-reads-without-bound: reading on while the output cannot leave") {
  if (kSanitized) return holds([] { skip("memory is the sanitizer's here"); });
  catches(battery::back_pressure, "reads-without-bound");
}
TEST_CASE("caught-leaks-memory: memory that is never freed") {
  if (kSanitized) return holds([] { skip("memory is the sanitizer's here"); });
  catches(battery::churn, "leaks-memory");
}
TEST_CASE("caught-exits-on-an-unknown-error: exit on an unknown error") {
  catches(battery::random_errors, "exits-on-an-error");
}

TEST_CASE("says-where: a failure says where and with which seed") {
  try {
    battery::arbitrary_chunks(broken("truncates-large-reads"));
    FAIL("it passed");
  } catch (const Failure& failure) {
    const std::string what = failure.what();
    CHECK(what.find("seed ") != std::string::npos);
    CHECK(what.find("bytes received") != std::string::npos);
    CHECK(what.find("the server: ") != std::string::npos);
  }
}

TEST_CASE("keeps-reads-whole: a server relies on short reads: libfiu shortens none of its reads") {
  holds([] {
    if (kSanitized) skip("libfiu and a sanitizer cannot both stand before the C library");
    const Subject any;
    const Subject relying{.command = {}, .short_reads = false};
    for (const auto faults : {battery::short_transfer_faults, battery::random_error_faults}) {
      CHECK(short_reads_under(faults(any)) > 0);
      CHECK(short_reads_under(faults(relying)) == 0);
      for (const std::string& fault : faults(relying)) {
        for (const std::string call : {"read", "readv", "pread", "preadv"}) {
          CAPTURE(fault);
          CHECK_FALSE(includes(fault, "posix/io/rw/" + call + "/reduce"));
        }
      }
    }
  });
}

// Without the flag it fails: the server awaits an event for bytes that libfiu held back.
TEST_CASE("no-short-reads: chapter 08's server survives short writes") {
  holds([] {
    const auto common = std::filesystem::path(BROKEN_SERVER).parent_path();
    const auto server = common.parent_path() / "08-netpoller" / "server";
    if (!exists(server)) skip("{} has not been built", server.string());
    const Run run = check({"--no-short-reads", "--only", "short writes", server});
    INFO(run.output << run.errors);
    if (run.exit.code == 77) skip("{}", run.output);
    CHECK(run.exit.code == 0);
  });
}

TEST_CASE("go-net: a server of Go's net package holds but for the descriptors") {
  holds([] {
    const std::string program = GO_NET_SERVER;
    if (program.empty()) skip("go is not installed, so there is no Go server to try");
    const Subject go{.command = {.argv = {program, "-address", "127.0.0.1:{port}"}},
                     .clients = 1000};
    const battery::Behaviour held[] = {battery::one_byte_at_a_time,
                                       battery::any_bytes_any_size,
                                       battery::arbitrary_chunks,
                                       battery::half_close,
                                       battery::half_close_slow_reader,
                                       battery::many_at_once,
                                       battery::isolation,
                                       battery::back_pressure,
                                       battery::idle,
                                       battery::reset,
                                       battery::close_without_reading,
                                       battery::churn,
                                       battery::aborted_accepts};
    for (const battery::Behaviour behaviour : held) behaviour(go);
    CHECK_THROWS_AS(battery::out_of_descriptors(go), Failure);
  });
}

TEST_CASE("ids: each behaviour has an id of its own, in small letters") {
  std::set<std::string> ids;
  for (const battery::Named& behaviour : battery::all()) {
    CAPTURE(behaviour.id);
    CHECK(ids.insert(behaviour.id).second);
    CHECK(std::string(behaviour.id).find_first_not_of("abcdefghijklmnopqrstuvwxyz-") ==
          std::string::npos);
  }
}

TEST_CASE("subreaper: a server that forks sixty processes: none is left") {
#ifdef __linux__
  // Each leaves the server's session, and sleeps for a time that no others use.
  const std::string time = fmt::format("1000.{}", ::getpid());
  const std::string script =
      "for i in $(seq 60); do setsid sleep " + time + " & done; exec \"$0\" \"$@\"";
  CHECK(check({"--only", "half-close", "sh", "-c", script, BROKEN_SERVER}).exit.code == 0);
  for (const auto& process : std::filesystem::directory_iterator("/proc")) {
    std::string command;
    std::getline(std::ifstream(process.path() / "cmdline"), command);
    CHECK_FALSE(command.starts_with("sleep" + std::string(1, '\0') + time));
  }
#else
  holds([] { skip("no system but Linux has a subreaper for adopt_orphans"); });
#endif
}

TEST_CASE("hostile: a server kills its process group or its parent: check goes on") {
  for (const std::string victim : {"0", "$PPID"}) {
    const std::string script = "kill -KILL " + victim + "; exec \"$0\" \"$@\"";
    const Run run =
        check({"--only", "idle", "--only", "half-close", "sh", "-c", script, BROKEN_SERVER});
    CAPTURE(run.output);
    CHECK(run.exit.text() == "exit code 1");
    CHECK(contains(run.output, "killed by signal 9"));
    CHECK(contains(run.output, "0 passed, 2 failed, 0 skipped"));
  }
}

TEST_CASE("two-failures: a server never listens: check tries two behaviours") {
  const Run run = check({"sh", "-c", "exit 3"});
  CHECK(run.exit.code == 1);
  CAPTURE(run.output);
  CHECK(contains(run.output,
                 fmt::format("0 passed, 2 failed, {} skipped", battery::all().size() - 2)));
}

TEST_CASE("exit-codes: check tells all skipped from some skipped and from misuse") {
  const std::vector<std::string> no_flags = {BROKEN_SERVER, "--port", "{port}"};
  const auto exit_code = [&](std::vector<std::string> flags) {
    flags.insert(flags.end(), no_flags.begin(), no_flags.end());
    return check(flags).exit.code;
  };
  CHECK(exit_code({"--only", "order"}) == 77);
  CHECK(exit_code({"--only", "order", "--only", "half-close"}) == 0);
  CHECK(exit_code({"--only", "order", "--only", "no-such-id"}) == 2);
}

TEST_CASE("seed: check passes its seed on, and a failure names the flags that repeat it") {
  const Run run = check({"--seed", "7", "--only", "arbitrary-chunks", BROKEN_SERVER, "--fault",
                         "truncates-large-reads"});
  CAPTURE(run.output);
  CHECK(contains(run.output, "seed 7)"));
  CHECK(contains(run.output, "(again: --only arbitrary-chunks --seed 7)"));
}

TEST_CASE("json: check prints one object, whatever bytes the server writes") {
  holds([] {
    if (!is_installed("python3")) skip("python3 is not installed");
    const std::string noisy = R"(printf '\377\001"\\' >&2; exec "$0" "$@" --fault dies-of-sigpipe)";
    const std::string script = R"(import json, sys
r = json.loads(sys.argv[1])
print(r['seed'], r['passed'], r['failed'], r['skipped'])
for b in r['behaviours']:
  print(b['id'], b['title'], b['outcome'], b['seconds'] > 0, '\xff\x01"\\' in b['reason']))";
    const Run run =
        check({"--json", "--seed", "7", "--only", "close-without-reading", "--only", "stop-idle",
               "--only", "order", "sh", "-c", noisy, BROKEN_SERVER, "--port", "{port}"});
    CAPTURE(run.output);
    CHECK(run_to_end({.argv = {"python3", "-c", script, run.output}}).output ==
          "7 1 1 1\n"
          "close-without-reading close without reading fail True True\n"
          "stop-idle stop, idle pass True False\n"
          "order order skip True False\n");
  });
}

TEST_CASE("does-not-listen: a program that does not listen is a failure that says why") {
  const std::string absent = failure_of({.argv = {"no-such-program"}});
  CAPTURE(absent);
  CHECK(contains(absent, "exit code 127"));
  CHECK(contains(absent, "cannot run no-such-program: No such file"));
  CHECK(contains(failure_of({.argv = {"sh", "-c", "echo hello"}}), "stdout \"hello"));
}

TEST_CASE("names-the-server: a failure names the server, not its wrapper") {
  const Command server{.argv = {"sh", "-c", "exit 3"}};
  CHECK(failure_of(server.under({"env", "A=b"})).starts_with("sh -c exit 3 does not listen"));
}

TEST_CASE("long-output: a failure quotes both ends of a long output") {
  const std::string message =
      failure_of({.argv = {"sh", "-c", "(echo first; seq 100000; echo last) >&2"}});
  CHECK(message.size() < 5'000);
  CHECK(contains(message, "first\n1\n2\n"));
  CHECK(contains(message, "100000\nlast\n"));
}

TEST_CASE("outlives-thread: a server still runs when the thread that started it has ended") {
  std::unique_ptr<ServerProcess> server;
  std::thread([&] { server = std::make_unique<ServerProcess>(broken("").command); }).join();
  Client(server->address()).echo("hello");
  CHECK(server->running());
}

TEST_CASE("killed-test: no server is left when its test is killed") {
  std::array<int, 2> ends;
  REQUIRE(::pipe(ends.data()) == 0);
  const Fd from(ends[0]);
  const Fd to(ends[1]);
  if (::fork() == 0) {
    const ServerProcess server(broken("").command);
    const Address address = server.address();
    (void)!::write(to.get(), &address, sizeof address);
    ::raise(SIGKILL);
  }
  Address address = {};
  REQUIRE(::read(from.get(), &address, sizeof address) == sizeof address);
  ::wait(nullptr);
  const bool gone = wait_until(patience, [&] {
    try {
      const Client client(address, 1s);
      return false;
    } catch (const std::exception&) {  // refused, at once or later
      return true;
    }
  });
  CHECK(gone);
}

TEST_CASE("environment: a variable of the command replaces the one of that name") {
  const Run run = run_to_end({.argv = {"env"}, .environment = {"HOME=/nowhere"}});
  const std::string output = "\n" + run.output;
  CHECK(contains(output, "\nHOME=/nowhere\n"));
  CHECK(output.find("\nHOME=") == output.rfind("\nHOME="));
  CHECK(contains(run.output, "PATH="));
}

TEST_CASE("fresh-signals: signals that the test ignores or blocks end its servers") {
  const auto exit_of = [](const char* signal) {
    const std::string script = fmt::format("kill -{} $$; echo survived", signal);
    return run_to_end({.argv = {"sh", "-c", script}}).exit.text();
  };
  // NOLINTNEXTLINE(performance-no-int-to-ptr): SIG_IGN is such a cast
  const auto usual = std::signal(SIGINT, SIG_IGN);
  sigset_t term;
  sigset_t usual_mask;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &term, &usual_mask);
  CHECK(exit_of("INT") == "killed by signal 2 (Interrupt)");
  CHECK(exit_of("TERM") == "killed by signal 15 (Terminated)");
  ::pthread_sigmask(SIG_SETMASK, &usual_mask, nullptr);
  std::signal(SIGINT, usual);
}

TEST_CASE("started-so: a command asks for signals, a soft limit and closed descriptors") {
  const auto run = [](Command command, const std::string& script) {
    command.argv = {"sh", "-c", script};
    const Run made = run_to_end(command);
    return made.output + made.exit.text();
  };
  const std::string interrupt = "kill -INT $$; echo survived; exit 3";
  CHECK(run({.ignored_signals = {SIGINT}}, interrupt) == "survived\nexit code 3");
  CHECK(run({.blocked_signals = {SIGINT}}, interrupt) == "survived\nexit code 3");
  const std::string limits = "ulimit -Sn; ulimit -Hn";
  CHECK(run({.descriptor_limit = 90, .soft_descriptor_limit = 40}, limits) ==
        "40\n90\nexit code 0");
  for (const int fd : {0, 1, 2}) {
    const std::string use = fmt::format("(exec 3<&{}) && exit 0; exit 9", fd);
    CHECK(run({}, use) == "exit code 0");
    CHECK(run({.closed_descriptors = {fd}}, use) == "exit code 9");
  }
}

TEST_CASE("user-and-system: what a server spends in user mode and in the kernel is told apart") {
  holds([] {
    // Two programs that never wait: one computes, the other does nothing but system calls.
    const auto system_share = [](const std::string& loop) {
      const std::string script = "echo listening on 127.0.0.1:1; " + loop;
      const ServerProcess server({.argv = {"sh", "-c", script}});
      std::this_thread::sleep_for(500ms);
      const Usage usage = server.usage();
      CHECK(std::abs((usage.user + usage.system - usage.cpu) / 1ms) < 100);
      return double(usage.system.count()) / double((usage.user + usage.system).count());
    };
    CHECK(system_share("while :; do :; done") < 0.4);
    CHECK(system_share("exec dd if=/dev/zero of=/dev/null bs=1 2>&1") > 0.5);
  });
}

TEST_CASE("pattern: a pattern is the same wherever it is entered and differs between clients") {
  std::string whole(1000, '\0');
  fill_pattern(1, 0, whole);
  for (std::size_t offset = 0; offset < 990; offset += 7) {
    std::string part(10, '\0');
    fill_pattern(1, offset, part);
    CHECK(part == whole.substr(offset, 10));
  }
  std::string other(1000, '\0');
  fill_pattern(2, 0, other);
  CHECK(other != whole);
}
