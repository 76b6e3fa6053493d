// ./tour break 04: level and edge, interest left armed, and ten thousand silent clients.
#include <fmt/core.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cstdio>
#include <exception>
#include <string_view>

#include "common/socket/socket.h"
#include "common/testing/battery.h"
#include "common/testing/cost.h"
#include "common/testing/faults.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};

// Two connected sockets, of which epoll watches the first.
struct Watched {
  explicit Watched(std::uint32_t events) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) != 0) fail("socketpair");
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
    epoll_event event{};
    event.events = events;
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, ours.get(), &event) != 0) fail("epoll_ctl");
  }

  int events_within(int ms) const {
    epoll_event event{};
    return ::epoll_wait(epoll.get(), &event, 1, ms);
  }

  Fd ours;
  Fd theirs;
  Fd epoll{::epoll_create1(0)};
};

void read_half_and_wait(const char* mode, std::uint32_t events) {
  const Watched watched(events);
  std::array<char, 5> half{};
  (void)write_some(watched.theirs, "tenletters");
  const int first = watched.events_within(0);
  (void)read_some(watched.ours, half);
  const int second = watched.events_within(0);
  (void)write_some(watched.theirs, "!");
  fmt::print("{:<18}{:>12}{:>20}{:>20}\n", mode, first, second, watched.events_within(0));
}

void level_and_edge() {
  fmt::print("Ten bytes arrive; five are read; an eleventh arrives. Events reported:\n\n");
  fmt::print("{:<18}{:>12}{:>20}{:>20}\n", "", "after ten", "after reading five", "after one more");
  read_half_and_wait("level-triggered", EPOLLIN);
  read_half_and_wait("edge-triggered", EPOLLIN | EPOLLET);
}

void left_armed() {
  fmt::print("\nA connection with nothing to write, watched for one second:\n\n");
  for (const bool armed : {false, true}) {
    const Watched watched(EPOLLIN | (armed ? EPOLLOUT : 0u));
    const auto end = Clock::now() + milliseconds(1000);
    int wakeups = 0;
    while (Clock::now() < end)
      wakeups += watched.events_within(static_cast<int>(std::max(1.0, -ms_since(end))));
    fmt::print("{:<18}{:>12} wake-ups\n", armed ? "EPOLLIN|EPOLLOUT" : "EPOLLIN", wakeups);
  }
}

void calls() {
  fmt::print("\n100 clients send 100 messages each; the server's system calls:\n\n");
  CallLog log(kServer, "read,write,epoll_wait,epoll_ctl");
  ServerProcess server(log.command());
  Swarm swarm(server.address(), 100, battery::seed());
  swarm.connect();
  const std::array calls = {"read", "write", "epoll_wait", "epoll_ctl"};
  std::array<std::size_t, 4> before{};
  for (std::size_t i = 0; i < calls.size(); ++i) before[i] = log.count(calls[i]);
  for (int i = 0; i < 100; ++i) swarm.exchange({.smallest_chunk = 64});
  for (std::size_t i = 0; i < calls.size(); ++i)
    fmt::print("{:<18}{:>12}\n", calls[i], log.count(calls[i]) - before[i]);
}

void cost() { print_costs_beside_idle(kServer, {100u, 900u, 10'000u}); }

void hold(std::size_t clients) {
  Swarm::need_descriptors(clients);
  ServerProcess server(kServer);
  const Usage before = server.usage();
  Swarm swarm(server.address(), clients, battery::seed());
  swarm.connect();
  const Usage held = server.usage();
  fmt::print("\n{} clients, all served: {} thread, {:.1f} MiB more than without them, {} B each\n",
             clients, held.threads, double(held.resident - before.resident) / (1 << 20),
             (held.resident - before.resident) / clients);
}

}  // namespace

int main() {
  int failed = 0;
  for (const auto experiment : {+[] { level_and_edge(); }, +[] { left_armed(); }, +[] { calls(); },
                                +[] { cost(); }, +[] { hold(18'000); }}) {
    try {
      experiment();
    } catch (const Skipped& reason) {
      fmt::print("skipped: {}\n", reason.what());
    } catch (const std::exception& problem) {
      fmt::print(stderr, "{}\n", problem.what());
      failed = 1;
    }
    (void)std::fflush(stdout);
  }
  return failed;
}
