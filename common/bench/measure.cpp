#include "common/bench/measure.h"

#include <chrono>

namespace {

double us(std::chrono::nanoseconds time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

double share(std::chrono::nanoseconds part, std::chrono::nanoseconds whole) {
  return whole.count() > 0 ? static_cast<double>(part.count()) / static_cast<double>(whole.count())
                           : 0;
}

// All zero where there is no /proc.
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
  m.system_share =
      share(end.system - begin.system, end.user + end.system - begin.user - begin.system);
  m.cores = us(cpu) / 1e6 / m.load.seconds;
  return m;
}
