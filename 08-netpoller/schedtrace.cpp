#include "schedtrace.h"

#include <fmt/core.h>

#include <algorithm>
#include <new>
#include <string>

#include "common/socket/process.h"

std::string Scheduler::trace() {
  std::string queues;
  std::size_t queued = global_.size();
  std::size_t running = 0;
  for (const auto& worker : workers_) {
    queued += worker->queue.size();
    running += worker->busy ? 1 : 0;
    queues += fmt::format(" {}", worker->queue.size());
  }
  const std::size_t all = goroutines_;
  const std::size_t parked = all - std::min(all, queued + running);
  return fmt::format(
      "SCHED workers={} running={} idle={} inpoll={} spinning={} parked={} polls={} steals={} "
      "breaks={} global={} queues=[{} ]",
      workers_.size(), running, idle_.load(), polling_ ? 1 : 0, spinning_.load(), parked,
      polls_.load(), steals_.load(), netpoller_.breaks(), global_.size(), queues);
}

Clock::time_point SchedTrace::fire() {
  try {
    log_line("{}", scheduler_.trace());
  } catch (const std::bad_alloc&) {  // no memory for a line: there is none
  }
  return Clock::now() + period_;
}
