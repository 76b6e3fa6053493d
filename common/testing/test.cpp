// The tester is tested: the battery passes a sound server, and catches each mistake
// it is there for. Then foreign servers, and the parts that tests are made of.
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
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
  Subject subject{.command = {.argv = {BROKEN_SERVER}, .environment = {}}, .clients = 300};
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

TEST_CASE("a server without a fault passes the whole battery") {
  for (const battery::Named& behaviour : battery::all()) {
    CAPTURE(behaviour.name);
    holds(broken(""), behaviour.run);
  }
}

TEST_CASE("caught: an answer that waits for more") {
  catches(battery::one_byte_at_a_time, "waits-for-a-second-byte");
}
TEST_CASE("caught: data taken for a C string") { catches(battery::any_bytes_any_size, "c-string"); }
TEST_CASE("caught: large reads cut short") {
  catches(battery::arbitrary_chunks, "truncates-large-reads");
}
TEST_CASE("caught: unread bytes dropped at half-close") {
#ifdef POLLRDHUP
  catches(battery::half_close, "closes-on-rdhup");
#else
  holds([] { skip("there is no POLLRDHUP here to misread"); });
#endif
}
TEST_CASE("caught: pending output dropped at half-close") {
  catches(battery::half_close_slow_reader, "drops-pending-at-eof");
}
TEST_CASE("caught: bytes of one connection sent to another") {
  catches(battery::many_at_once, "mixes-connections");
}
TEST_CASE("caught: a write to one client that stalls the others") {
  catches(battery::isolation, "blocks-in-write");
}
TEST_CASE("caught: reading on while the output cannot leave") {
  if (kSanitized) return holds([] { skip("memory is the sanitizer's here"); });
  catches(battery::back_pressure, "reads-without-bound");
}
TEST_CASE("caught: write interest left armed") { catches(battery::idle, "write-always-armed"); }
TEST_CASE("caught: death by SIGPIPE") {
  catches(battery::close_without_reading, "dies-of-sigpipe");
}
TEST_CASE("caught: exit on a reset") { catches(battery::reset, "exits-on-an-error"); }
TEST_CASE("caught: descriptors that are never closed") {
  catches(battery::churn, "leaks-descriptors");
}
TEST_CASE("caught: memory that is never freed") {
  if (kSanitized) return holds([] { skip("memory is the sanitizer's here"); });
  catches(battery::churn, "leaks-memory");
}
TEST_CASE("caught: spinning without descriptors") {
  catches(battery::out_of_descriptors, "spins-without-descriptors");
}
TEST_CASE("caught: exit without descriptors") {
  catches(battery::out_of_descriptors, "exits-without-descriptors");
}
TEST_CASE("caught: never accepting again") {
  catches(battery::out_of_descriptors, "never-accepts-again");
}
TEST_CASE("caught: accepting without end") {
  catches(battery::gone_before_accepted, "accepts-without-end");
}
TEST_CASE("caught: a pause after an aborted accept") {
  catches(battery::aborted_accepts, "pauses-on-abort");
}
TEST_CASE("caught: EINTR taken for an error") {
  catches(battery::interrupted_calls, "takes-eintr-of-read-for-an-error");
}
TEST_CASE("caught: EINTR of another call taken for an error") {
  catches(battery::interrupted_calls, "takes-eintr-of-recv-for-an-error");
}
TEST_CASE("caught: a partial write forgotten") {
  catches(battery::short_writes, "forgets-a-partial-write");
}
TEST_CASE("caught: exit on an unknown error") {
  catches(battery::random_errors, "exits-on-an-error");
}
TEST_CASE("caught: exit without memory") { catches(battery::out_of_memory, "dies-without-memory"); }
TEST_CASE("caught: nonsense taken for a port") { catches(battery::misuse, "lenient-flags"); }
TEST_CASE("caught: a port in use and exit code 0") {
  catches(battery::port_in_use, "complains-on-stdout");
}
TEST_CASE("caught: waiting for idle clients at SIGTERM") {
  catches(battery::stop_idle, "waits-for-the-idle");
}
TEST_CASE("caught: bytes dropped at SIGTERM") {
  catches(battery::stop_busy, "drops-everything-at-stop");
}
TEST_CASE("caught: waiting for ever at SIGTERM") {
  catches(battery::stop_stuck, "stop-without-grace");
}
TEST_CASE("caught: what is written taken for received at SIGTERM") {
  catches(battery::stop_unacknowledged, "takes-written-for-received");
}
TEST_CASE("caught: a signal handler that uses what is gone") {
  catches(battery::stop_asked_again, "uses-at-a-signal-what-is-gone");
}
TEST_CASE("caught: no idle timer") { catches(battery::idle_timeout, "starts-no-timer"); }
TEST_CASE("caught: an idle timer that is never restarted") {
  catches(battery::idle_timeout, "never-restarts-the-timer");
}
TEST_CASE("caught: slow work in the loop") { catches(battery::slow_handler, "works-in-the-loop"); }
TEST_CASE("caught: a quick request that overtakes a slow one") {
  catches(battery::order, "quick-overtakes-slow");
}

TEST_CASE("caught: a failure says where and with which seed") {
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

TEST_CASE("a server relies on short reads: libfiu shortens none of its reads") {
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

// Without the flag it fails: it waits for an event for bytes that libfiu held back.
TEST_CASE("check --no-short-reads: chapter 08's server survives short writes") {
  holds([] {
    const auto common = std::filesystem::path(BROKEN_SERVER).parent_path();
    const auto check = common / "check";
    const auto server = common.parent_path() / "08-netpoller" / "server";
    for (const auto& program : {check, server})
      if (!exists(program)) skip("{} has not been built", program.string());
    const Run run = run_to_end(
        {.argv = {check, "--no-short-reads", "--only", "short writes", server}, .environment = {}},
        60s);
    INFO(run.output << run.errors);
    CHECK(run.exit.code == 0);
  });
}

TEST_CASE("a server of Go's net package holds but for the descriptors") {
  holds([] {
    const std::string program = GO_NET_SERVER;
    if (program.empty()) skip("go is not installed, so there is no Go server to try");
    const Subject go{
        .command = {.argv = {program, "-address", "127.0.0.1:{port}"}, .environment = {}},
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

TEST_CASE("a program that does not listen is a failure that says why") {
  const auto message = [](const Command& command) {
    try {
      const ServerProcess server(command);
    } catch (const Failure& failure) {
      return std::string(failure.what());
    }
    return std::string("no Failure");
  };
  const std::string absent = message({.argv = {"no-such-program"}, .environment = {}});
  CHECK(absent.find("exit code 127") != std::string::npos);
  CHECK(absent.find("cannot run no-such-program: No such file") != std::string::npos);
  CHECK(message({.argv = {"sh", "-c", "echo hello"}, .environment = {}}).find("stdout \"hello") !=
        std::string::npos);
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
  ::sigemptyset(&term);
  ::sigaddset(&term, SIGTERM);
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

TEST_CASE("what a server spends in user mode and in the kernel is told apart") {
  holds([] {
    // Two programs that never wait: one computes, the other does nothing but system calls.
    const auto system_share = [](const std::string& loop) {
      const std::string script = "echo listening on 127.0.0.1:1; " + loop;
      const ServerProcess server({.argv = {"sh", "-c", script}, .environment = {}});
      std::this_thread::sleep_for(500ms);
      const Usage usage = server.usage();
      CHECK(std::abs((usage.user + usage.system - usage.cpu) / 1ms) < 100);
      return double(usage.system.count()) / double((usage.user + usage.system).count());
    };
    CHECK(system_share("while :; do :; done") < 0.4);
    CHECK(system_share("exec dd if=/dev/zero of=/dev/null bs=1 2>&1") > 0.5);
  });
}

TEST_CASE("a pattern is the same wherever it is entered and differs between clients") {
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
