#include "timers.h"

#include <algorithm>

using std::chrono::milliseconds;

Timer Timers::add(Clock::time_point when, Callback callback) {
  const Timer timer{when, ++last_number_};
  callbacks_.emplace(timer, std::move(callback));
  return timer;
}

// Rounded up: a wait that is too short by a fraction would end before the timer is due,
// and the loop would spin until it is. At most an hour, because systems limit a wait.
std::optional<milliseconds> Timers::until_next(Clock::time_point latest) const {
  const auto next = callbacks_.empty() ? latest : std::min(latest, callbacks_.begin()->first.first);
  if (next == kNever) return std::nullopt;
  const auto left = std::chrono::ceil<milliseconds>(next - Clock::now());
  return std::clamp<milliseconds>(left, milliseconds(0), std::chrono::hours(1));
}

// A callback is taken out before it runs, because it may cancel any timer, even its own.
// A timer that it adds waits for the next turn, or two timers could starve the loop.
void Timers::run_due() {
  const Timer end{Clock::now(), last_number_};
  while (!callbacks_.empty() && callbacks_.begin()->first <= end) {
    const auto due = callbacks_.extract(callbacks_.begin());
    due.mapped()();
  }
}
