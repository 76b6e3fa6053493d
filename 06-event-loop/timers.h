// Timers: callbacks in the order in which they are due. For one thread.
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

// Identifies a timer, to cancel it: when it is due, and a number, because two can be due
// at the same time. The default value identifies none.
using Timer = std::pair<Clock::time_point, std::uint64_t>;

class Timers {
 public:
  Timer add(Clock::time_point when, Callback callback);
  // Does nothing if the timer has run, or was cancelled before.
  void cancel(const Timer& timer) { callbacks_.erase(timer); }

  // Returns the time until the next timer is due, or until `latest`, in whole milliseconds,
  // rounded up, at most an hour. 0 if that time has come; nullopt if there is none.
  std::optional<std::chrono::milliseconds> until_next(Clock::time_point latest = kNever) const;

  // Runs the timers that are due now. Each may add and cancel others.
  void run_due();

 private:
  std::map<Timer, Callback> callbacks_;
  std::uint64_t last_number_ = 0;
};
