// --schedtrace: a line on stderr every `period`, after GODEBUG=schedtrace. Zero: none.
// Go: schedtrace in runtime/proc.go.
//
// A timer that sets itself again; a goroutine would have to be ended.
#pragma once

#include <chrono>

#include "scheduler.h"
#include "timers.h"

class SchedTrace : private Timer {
 public:
  SchedTrace(Scheduler& scheduler, std::chrono::milliseconds period)
      : scheduler_(scheduler), period_(period) {
    if (period_.count() > 0) scheduler_.timers().add(*this, Clock::now() + period_);
  }
  ~SchedTrace() { scheduler_.timers().remove(*this); }

 private:
  Clock::time_point fire() override;

  Scheduler& scheduler_;
  const std::chrono::milliseconds period_;
};
