// A server under load, seen from both sides: its answers, and what it uses for them.
#pragma once

#include <cstddef>
#include <string>

#include "common/bench/load.h"
#include "common/testing/server_process.h"

struct Measurement {
  LoadResult load;

  // Used by the server for each answer.
  double cpu_us = 0;    // user and system, between begin and end
  double switches = 0;  // context switches of all its threads, with the warm-up
  // The kernel's share of the server's CPU time between begin and end, 0 to 1. The kernel
  // finds it by sampling (CONFIG_TICK_CPU_ACCOUNTING): good to a few percent in a second.
  double system_share = 0;
  double cores = 0;  // cores that it kept busy between begin and end

  // The server when every connection has been answered once and is silent.
  std::size_t threads = 0;
  std::size_t resident = 0;       // bytes
  double kib_per_connection = 0;  // growth of resident since before the first connection
};

// Starts the server, loads it by the plan (whose on_moment is not called) and ends it.
// Throws Failure if the server does not start, or ends by itself. Without /proc (off
// Linux) the server's figures are 0.
Measurement measure(const Command& command, LoadPlan plan);

// Replaces the progress line on stderr, if stderr is a terminal. An empty text removes it.
void show_progress(const std::string& text);
