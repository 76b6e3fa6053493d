// Timers: what is due when, the earliest first. One thread uses it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>

using Clock = std::chrono::steady_clock;
using Callback = std::function<void()>;
constexpr Clock::time_point kNever = Clock::time_point::max();

// Names one timer, to cancel it: when it is due, and a number, because two can be due
// at once. The default one is nobody's.
using Timer = std::pair<Clock::time_point, std::uint64_t>;

class Timers {
 public:
  Timer add(Clock::time_point when, Callback callback);
  // It will not run. One that has run, or was cancelled, is none any more: nothing happens.
  void cancel(const Timer& timer) { callbacks_.erase(timer); }

  // How long until the next is due, or `latest` has come, in whole milliseconds, rounded
  // up, an hour at most; 0: one is due now; nothing: there is none.
  std::optional<std::chrono::milliseconds> until_next(Clock::time_point latest = kNever) const;

  // Runs those that are due now. Each may add and cancel others.
  void run_due();

 private:
  std::map<Timer, Callback> callbacks_;
  std::uint64_t last_number_ = 0;
};
