#include "timers.h"

void Timers::add(Timer& timer, Clock::time_point when) {
  bool sooner = false;
  {
    const std::lock_guard lock(mutex_);
    if (timer.when_ <= when) return;
    timers_.erase({timer.when_, &timer});
    timers_.emplace(when, &timer);
    timer.when_ = when;
    sooner = when < next_.load();
    update_next();
  }
  // The timer is not touched any more: it may have fired, and be gone.
  if (sooner) sooner_();
}

void Timers::remove(Timer& timer) {
  const std::lock_guard lock(mutex_);
  timers_.erase({timer.when_, &timer});
  timer.when_ = Timer::kNotSet;
  update_next();
}

// Fires them unlocked: each may add itself again.
void Timers::fire_due() {
  if (next() == Clock::time_point::max()) return;
  const auto now = Clock::now();
  while (next() <= now) {
    Timer* due = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (timers_.empty() || timers_.begin()->first > now) return;
      due = timers_.begin()->second;
      timers_.erase(timers_.begin());
      due->when_ = Timer::kNotSet;
      update_next();
    }
    due->fire();
  }
}

void Timers::update_next() {
  next_ = timers_.empty() ? Clock::time_point::max() : timers_.begin()->first;
}
