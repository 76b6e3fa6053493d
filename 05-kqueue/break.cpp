// ./tour break 05: EV_EOF before the last byte, edges, errors as events, silent clients.
#include <sys/types.h>  // OpenBSD wants it first

#include <fmt/core.h>
#include <sys/event.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <string>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/battery.h"
#include "common/testing/cost.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

const Command kServer{.argv = {SERVER}, .environment = {}};

// Two connected sockets, and a kqueue that may watch the first.
struct Watched {
  Watched() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) fail("socketpair");
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
    set_non_blocking(ours);
  }

  // Applies one change; returns what kevent returns.
  int change(int fd, short filter, unsigned short flags) const {
    struct kevent change {};
    EV_SET(&change, fd, filter, flags, 0, 0, nullptr);
    return ::kevent(queue.get(), &change, 1, nullptr, 0, nullptr);
  }

  // The events that are reported now, as text: "READ, 10 bytes, EV_EOF".
  std::string events() const {
    std::array<struct kevent, 4> events;
    const timespec at_once{};
    const int count =
        ::kevent(queue.get(), nullptr, 0, events.data(), static_cast<int>(events.size()), &at_once);
    std::string text;
    for (int i = 0; i < count; ++i) {
      const struct kevent& event = events[static_cast<std::size_t>(i)];
      if (!text.empty()) text += "; ";
      text += event.filter == EVFILT_READ ? fmt::format("READ, {} bytes", event.data) : "WRITE";
      if (event.flags & EV_EOF) text += ", EV_EOF";
    }
    return text.empty() ? "no event" : text;
  }

  Fd ours;
  Fd theirs;
  Fd queue{::kqueue()};
};

void end_of_file() {
  fmt::print("Ten bytes arrive and the peer closes. Events, and what reads return:\n\n");
  Watched watched;
  (void)watched.change(watched.ours.get(), EVFILT_READ, EV_ADD);
  (void)write_some(watched.theirs, "tenletters");
  watched.theirs.reset();
  std::array<char, 5> half{};
  for (int i = 0; i < 3; ++i) {
    const std::string events = watched.events();
    fmt::print("{:<28}then read returns {}\n", events, read_some(watched.ours, half).size);
  }
}

void level_and_clear() {
  fmt::print("\nTen bytes arrive; five are read; an eleventh arrives:\n\n");
  fmt::print("{:<12}{:<24}{:<24}{}\n", "", "after ten", "after reading five", "after one more");
  for (const bool clear : {false, true}) {
    const Watched watched;
    std::array<char, 5> half{};
    (void)watched.change(watched.ours.get(), EVFILT_READ, clear ? EV_ADD | EV_CLEAR : EV_ADD);
    (void)write_some(watched.theirs, "tenletters");
    const std::string first = watched.events();
    (void)read_some(watched.ours, half);
    const std::string second = watched.events();
    (void)write_some(watched.theirs, "!");
    fmt::print("{:<12}{:<24}{:<24}{}\n", clear ? "EV_CLEAR" : "level", first, second,
               watched.events());
  }
}

void errors() {
  fmt::print("\nA filter for a descriptor that is not open:\n\n");
  const Watched watched;
  const int closed = watched.theirs.get() + 100;
  struct kevent change {};
  struct kevent event {};
  EV_SET(&change, closed, EVFILT_READ, EV_ADD, 0, 0, nullptr);
  const timespec soon{.tv_sec = 0, .tv_nsec = 1'000'000};
  (void)write_some(watched.theirs, "!");
  (void)watched.change(watched.ours.get(), EVFILT_READ, EV_ADD);
  errno = 0;
  const int without = ::kevent(watched.queue.get(), &change, 1, nullptr, 0, &soon);
  fmt::print("no room for events: returns {}, errno says \"{}\"\n", without, error_text(errno));
  errno = 0;
  const int with = ::kevent(watched.queue.get(), &change, 1, &event, 1, &soon);
  const int error = static_cast<int>(event.data);
  fmt::print("room for one event: returns {}, errno is {}, EV_ERROR {}, data says \"{}\"\n", with,
             errno, event.flags & EV_ERROR ? "set" : "not set", error_text(error));
}

void cost() { print_costs_beside_idle(kServer, {100u, 900u, 10'000u}); }

}  // namespace

int main() {
  int failed = 0;
  for (const auto experiment :
       {+[] { end_of_file(); }, +[] { level_and_clear(); }, +[] { errors(); }, +[] { cost(); }}) {
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
