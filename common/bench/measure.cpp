#include "common/bench/measure.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace {

double us(std::chrono::nanoseconds time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

// All zero without /proc.
Usage usage_of(const ServerProcess& server) {
  try {
    return server.usage();
  } catch (const Skipped&) {
    return {};
  }
}

}  // namespace

Measurement measure(const Command& command, LoadPlan plan) {
  ServerProcess server(command);
  const std::size_t resident = usage_of(server).resident;
  Usage quiet;
  Usage begin;
  Usage end;
  std::size_t switches = 0;
  plan.on_moment = [&](Moment moment) {
    switch (moment) {
      case Moment::connected:
        quiet = usage_of(server);
        switches = server.context_switches();
        break;
      case Moment::begin: begin = usage_of(server); break;
      case Moment::end: end = usage_of(server); break;
      case Moment::drained: switches = server.context_switches() - switches; break;
    }
  };

  Measurement m;
  m.load = run_load(server.address(), plan);
  m.threads = quiet.threads;
  m.resident = quiet.resident;
  const std::size_t held = m.load.held + m.load.idle_held;
  if (held > 0 && quiet.resident > resident) {
    m.kib_per_connection =
        static_cast<double>(quiet.resident - resident) / 1024 / static_cast<double>(held);
  }
  if (m.load.answered == 0) return m;
  const auto cpu = end.cpu - begin.cpu;
  m.cpu_us = us(cpu) / static_cast<double>(m.load.answered);
  m.switches = static_cast<double>(switches) / static_cast<double>(m.load.total);
  const double system = us(end.system - begin.system);
  const double ticks = system + us(end.user - begin.user);
  m.system_share = ticks > 0 ? system / ticks : 0;
  m.cores = us(cpu) / 1e6 / m.load.seconds;
  return m;
}

void show_progress(const std::string& text) {
  if (::isatty(STDERR_FILENO) == 1) (void)std::fputs(("\r\033[K" + text).c_str(), stderr);
}
