#include "timers.h"

#include <algorithm>

using std::chrono::milliseconds;

Timer Timers::add(Clock::time_point when, Task task) {
  const Timer timer{when, ++last_number_};
  tasks_.emplace(timer, std::move(task));
  return timer;
}

// Rounded up: a wait that is cut short by a fraction would end before the timer is due,
// and the loop would turn, at full speed, until it is.
std::optional<milliseconds> Timers::until_next() const {
  if (tasks_.empty()) return std::nullopt;
  const auto left = std::chrono::ceil<milliseconds>(tasks_.begin()->first.first - Clock::now());
  return std::max(milliseconds(0), left);
}

// A task is taken out before it runs, for it may cancel any timer, itself too; and what
// it adds is not due before the next turn, or two timers could keep the loop to themselves.
void Timers::run_due() {
  const Timer end{Clock::now(), last_number_};
  while (!tasks_.empty() && tasks_.begin()->first <= end) {
    const auto due = tasks_.extract(tasks_.begin());
    due.mapped()();
  }
}
