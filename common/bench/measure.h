// What a server does under a load, seen from both sides: its answers, and what it uses
// for them.
#pragma once

#include <cstddef>
#include <string>

#include "common/bench/load.h"
#include "common/testing/server_process.h"

struct Measurement {
  LoadResult load;

  // Of the server, per answer that came back.
  double cpu_us = 0;    // user and system, between begin and end
  double switches = 0;  // how often a thread was taken off its core, with the warm-up
  // Of the server's CPU time between begin and end, 0 to 1. The kernel tells the two
  // apart by sampling (CONFIG_TICK_CPU_ACCOUNTING): good to a few percent in a second.
  double system_share = 0;
  double cores = 0;  // that it kept busy between begin and end

  // Of the server when all are connected, have been answered once, and say nothing.
  std::size_t threads = 0;
  std::size_t resident = 0;       // bytes
  double kib_per_connection = 0;  // resident, above what it had before the first came
};

// Starts the server, loads it by the plan (whose on_moment is not called) and ends it.
// Throws Failure if it does not start or ends by itself. Without /proc (off Linux) all
// that the server uses is 0.
Measurement measure(const Command& command, LoadPlan plan);

// Replaces the line of progress on stderr, if stderr is a terminal. An empty text removes it.
void show_progress(const std::string& text);
