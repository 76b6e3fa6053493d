// How a server handles the way it was started, and requests to stop: see battery.h.
#include <sys/types.h>

#include <cctype>
#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"

namespace battery {
namespace {

// Fails unless the server ends within `limit`, with exit code 0 or by the signal. With
// `as_a_shell`, an exit code reports the signal, as in a shell.
void expect_end(ServerProcess& server, int signal, milliseconds limit, bool as_a_shell = false) {
  const auto start = Clock::now();
  const auto exit = server.wait_for_exit(limit);
  if (!exit) fail("still running {:.0f} ms after signal {}", ms_since(start), signal);
  const bool died = as_a_shell ? !exit->signalled && exit->code == 128 + signal
                               : exit->signalled && exit->code == signal;
  const bool done = !exit->signalled && exit->code == 0;
  if (!died && !done)
    fail("{} after signal {}; stderr: \"{}\"", exit->text(), signal, server.errors());
}

// The only child of `parent`.
pid_t child_of(pid_t parent) {
  pid_t child = 0;
  std::ifstream(fmt::format("/proc/{0}/task/{0}/children", parent)) >> child;
  if (child == 0) skip("/proc does not tell which process another one has started");
  return child;
}

}  // namespace

void signals_blocked(const Subject& subject) {
  const std::vector<std::string> blocking = {"env", "--block-signal=TERM,INT"};
  if (run_to_end(Command{.argv = {"true"}, .environment = {}}.under(blocking)).exit.code != 0)
    skip("env(1) cannot block signals here");
  for (const int number : {SIGTERM, SIGINT}) {
    ServerProcess server(subject.command.under(blocking));
    Client(server.address()).echo("hello");
    server.signal(number);
    expect_end(server, number, patience);
  }
}

void interrupt_ignored(const Subject& subject) {
  const std::vector<std::string> ignoring = {"sh", "-c", R"(trap "" INT; exec "$0" "$@")"};
  ServerProcess server(subject.command.under(ignoring));
  Client client(server.address());
  client.echo("hello");
  server.signal(SIGINT);
  // A server that stops closes an idle client at once, or after its next two ticks.
  if (client.is_closed_within(1s)) fail("SIGINT stopped it, although its parent ignores SIGINT");
  client.echo("still there?");
  server.signal(SIGTERM);
  expect_end(server, SIGTERM, patience);
}

void process_one(const Subject& subject) {
  const std::vector<std::string> container = {"unshare", "--map-root-user", "--fork",
                                              "--pid",   "--mount-proc",    "--kill-child"};
  if (!is_installed("unshare")) skip("unshare is not installed");
  const Run allowed = run_to_end(Command{.argv = {"true"}, .environment = {}}.under(container));
  if (allowed.exit.code != 0) skip("no PID namespace for us: {}", allowed.errors);
  Command command = subject.command.under(container);
  // 02 exits without its threads having ended.
  if (kThreadSanitizer) command.environment.emplace_back("TSAN_OPTIONS=report_thread_leaks=0");
  for (const int number : {SIGTERM, SIGINT}) {
    ServerProcess server(command);
    Client(server.address()).echo("hello");
    ::kill(child_of(server.pid()), number);
    expect_end(server, number, patience, true);
  }
}

void keep_alive(const Subject& subject) {
  if (!is_installed("ss")) skip("ss is not installed (package iproute2)");
  with_server(subject.command, [](ServerProcess& server) {
    Client client(server.address());
    client.echo("hello");
    const std::string address = to_text(server.address());
    const std::vector<std::string> ss = {
        "ss", "-tnoH", "state", "established", "sport", "=", address.substr(address.rfind(':'))};
    const std::string timer = "timer:(keepalive,";
    std::string seen;
    // Until the reply is acknowledged, ss shows the timer of its retransmission.
    const bool set = wait_until(patience, [&] {
      seen = run_to_end({.argv = ss, .environment = {}}).output;
      return seen.find(timer) != std::string::npos;
    });
    if (!set) fail("no keep-alive timer on an idle connection: \"{}\"", seen);
    const std::string left = seen.substr(seen.find(timer) + timer.size());
    const bool minutes = left.find("min") < left.find(')');
    if (minutes || std::stoi(left) > 15)
      fail("the first probe is due after 15 s, as in Go: \"{}\"", seen);
  });
}

void stop_blocked(const Subject& subject) {
  {
    ServerProcess server(subject.command.with({"--work", "1s"}));
    Client quick(server.address());
    quick.echo("hello");
    Client slow(server.address());
    slow.send("# slow");
    if (slow.hears_within(50ms)) fail("a request that takes 1 s was answered within 50 ms");
    quick.send("quick");  // served at the latest when the slow one is done
    for (int i = 0; i < 10; ++i) {
      for (const int number : {SIGTERM, SIGINT}) server.signal(number);
      std::this_thread::sleep_for(5ms);  // or the next signal would merge with it
    }
    for (Client* client : {&quick, &slow}) {
      const std::string back = client->receive_until_end();
      if (back != (client == &quick ? "quick" : "# slow"))
        fail("\"{}\" came back after ten signals, and the server's end", back);
    }
    expect_end(server, SIGTERM, patience);
  }
  ServerProcess server(subject.command.with({"--work", "1h"}));
  Client client(server.address());
  client.send("# blocks");
  if (client.hears_within(50ms)) fail("a request that takes 1 h was answered within 50 ms");
  for (const int number : {SIGTERM, SIGINT}) server.signal(number);
  expect_end(server, SIGTERM, 7s);  // the grace of 5 s, and one more
  if (server.errors().find("1 jobs are not finished") == std::string::npos)
    fail("the log does not say that a job is not finished; stderr: \"{}\"", server.errors());
}

}  // namespace battery
