// Loads an echo server and counts its answers, for `echoload`, `measure`, the race and cost.
//
// Closed loop: each connection has `depth` messages under way, and sends another when one
// has come back. The server sets the pace, so this measures what a message costs. It hides
// stalls: while the server is stopped nothing is sent, and one late message a connection
// is lost among thousands.
//
// Open loop: messages are due at a constant rate, whatever the server does. Their latency
// counts from when they were due, not from when they could be sent. This measures how long
// a user waits. Gil Tene calls the closed loop's error "coordinated omission". test.cpp
// shows both loops against a server that is stopped for a second.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "common/bench/histogram.h"
#include "common/socket/address.h"

// The moments of a run at which its caller may want to look at the server.
enum class Moment {
  connected,  // every connection is served, and nothing is under way
  begin,      // the measured time begins
  end,        // the measured time ends
  drained,    // nothing is under way any more; the connections are still open
};

struct LoadPlan {
  std::size_t clients = 100;  // connections that send
  std::size_t idle = 0;       // connections that send nothing after their first message
  // Further connections, in a closed loop, whose bytes are all '#'. Servers with --work
  // (06 to 08) take these for slow requests. The other connections send no '#'.
  std::size_t slow = 0;
  std::size_t size = 64;    // bytes of a message
  std::size_t threads = 1;  // of the generator; they share the connections
  std::size_t depth = 1;    // messages under way on a connection, closed loop
  std::size_t rate = 0;     // messages a second on all connections; 0: closed loop
  std::chrono::milliseconds warmup{1000};
  std::chrono::milliseconds duration{5000};
  // While connecting: after this time without a byte, unserved connections are given up.
  std::chrono::milliseconds give_up{2000};
  std::uint64_t seed = 1;  // decides the bytes that are sent

  // Both are called from the thread that called run_load.
  std::function<void(Moment)> on_moment = [](Moment) {};
  // Ten times a second.
  std::function<void(const std::string&)> on_progress = [](const std::string&) {};
};

struct LoadResult {
  // Connections. Each sends a first message, and is held once that has come back.
  std::size_t held = 0;
  std::size_t idle_held = 0;
  std::size_t refused = 0;    // could not connect, or were closed at once
  std::size_t unserved = 0;   // connected, but the first message did not come back
  std::size_t broken = 0;     // closed by the server during the run
  std::size_t idle_lost = 0;  // idle connections closed by the server
  std::string first_problem;  // why the first of these connections was lost

  // Messages. Those that were due between begin and end are measured. The slow connections
  // count only in slow_answered.
  std::uint64_t total = 0;             // answers, with the warm-up
  std::uint64_t answered = 0;          // answers between begin and end
  std::uint64_t unanswered = 0;        // measured, but not back 2 s after the end
  std::uint64_t slow_answered = 0;     // answers to slow connections
  std::uint64_t mismatched_bytes = 0;  // bytes that came back changed
  double seconds = 0;                  // from begin to end
  Histogram latency;                   // of measured messages, in ns (unanswered: until given up)
  Histogram lateness;  // open loop: from when a message was due until it was sent, in ns

  double cpu_share = 0;  // share of a core, 0 to 1, of the busiest thread, with the warm-up

  double requests_per_second() const;
  // Why the figures are the generator's limit and not the server's. Empty if they are not.
  std::string bottleneck() const;
};

// Connects, loads, drains, disconnects. Source addresses are spread over 127.0.0.0/8
// where the server is on that network and the system has more of it than 127.0.0.1.
// Elsewhere connections end with a reset, which leaves no port in TIME_WAIT.
// Throws StartupError if this process may not open so many descriptors.
LoadResult run_load(const Address& server, const LoadPlan& plan);
