// Load on an echo server, and what it answers: the measuring part of `echoload`, of the
// race and of the benchmark.
//
// Closed loop: each connection has `depth` messages under way, and sends one when one
// has come back. The server sets the pace, so this measures what a message costs. It
// hides stalls: while the server stands still nothing is sent, and the one message of
// each connection that is late is lost among the thousands that were not.
//
// Open loop: messages are due at a constant rate, whatever the server does, and their
// latency counts from when they were due, not from when they could be sent. This
// measures what a user waits. Gil Tene calls what the closed loop does "coordinated
// omission"; test.cpp shows both against a server that stands still for a second.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "common/bench/histogram.h"
#include "common/socket/address.h"

// A moment of a run at which its caller may want to look at the server.
enum class Moment {
  connected,  // every connection is served and none has anything under way
  begin,      // of what is measured
  end,        // of what is measured
  drained,    // nothing is under way any more; the connections are still open
};

struct LoadPlan {
  std::size_t clients = 100;  // connections that send
  std::size_t idle = 0;       // connections that say nothing after their first message
  // Connections of a closed loop beside them whose bytes are all '#', which servers with
  // --work (06 to 08) take for slow requests. The others send no '#'.
  std::size_t slow = 0;
  std::size_t size = 64;    // bytes of a message
  std::size_t threads = 1;  // the connections are shared out among them
  std::size_t depth = 1;    // messages under way on a connection, closed loop
  std::size_t rate = 0;     // messages a second on all connections; 0: closed loop
  std::chrono::milliseconds warmup{1000};
  std::chrono::milliseconds duration{5000};
  // When no connection has moved for so long, those that are not served are given up.
  std::chrono::milliseconds give_up{2000};
  std::uint64_t seed = 1;  // of the bytes that are sent

  // Both are called from the thread that called run_load.
  std::function<void(Moment)> on_moment = [](Moment) {};
  // Ten times a second.
  std::function<void(const std::string&)> on_progress = [](const std::string&) {};
};

struct LoadResult {
  // Connections. Each sends a first message and is held when that has come back.
  std::size_t held = 0;
  std::size_t idle_held = 0;
  std::size_t refused = 0;    // the connection could not be made, or was closed at once
  std::size_t unserved = 0;   // it was made, but the first message did not come back
  std::size_t broken = 0;     // the server closed it during the run
  std::size_t idle_lost = 0;  // the same of the idle ones
  std::string first_problem;  // of the connections that were refused or broke

  // Messages. Measured are those that were due between begin and end.
  std::uint64_t total = 0;             // came back, those of the warm-up among them
  std::uint64_t answered = 0;          // came back between begin and end
  std::uint64_t unanswered = 0;        // measured, and not back 2 s after the end, if sent at all
  std::uint64_t slow_answered = 0;     // of the slow connections; all else is not of them
  std::uint64_t mismatched_bytes = 0;  // that came back and were not the ones sent
  double seconds = 0;                  // from begin to end
  Histogram latency;   // of the measured, in ns; an unanswered one counts as so late as it is
  Histogram lateness;  // open loop: how long after they were due they were sent, in ns

  double cpu_share = 0;  // of one core, 0 to 1: what the busiest thread of ours used

  double requests_per_second() const;
  // Empty, or how the generator, and not the server, set the figures.
  std::string bottleneck() const;
};

// Connects, loads, drains, disconnects. Source addresses are spread over 127.0.0.0/8
// where the server is on that network and the system has more of it than 127.0.0.1;
// elsewhere connections end with a reset, which leaves no port in TIME_WAIT.
// Throws StartupError if this process may not open so many descriptors.
LoadResult run_load(const Address& server, const LoadPlan& plan);
