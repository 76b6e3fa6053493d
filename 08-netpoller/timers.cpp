#include "timers.h"

// A node of the set, if there is one, is used again: that cannot fail.
void Timers::put(Timer& timer, Clock::time_point when, Set::node_type node) {
  bool sooner = false;
  {
    const std::lock_guard lock(mutex_);
    if (timer.when_ <= when) return;
    if (Set::node_type old = timers_.extract({timer.when_, &timer})) node = std::move(old);
    if (node) {
      node.value() = {when, &timer};
      timers_.insert(std::move(node));
    } else {
      timers_.emplace(when, &timer);
    }
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
  timer.when_ = kNever;
  update_next();
}

// Fires them unlocked: what they do may set others.
void Timers::fire_due() {
  const auto now = Clock::now();
  while (next() <= now) {
    Set::node_type due;
    {
      const std::lock_guard lock(mutex_);
      if (timers_.empty() || timers_.begin()->first > now) return;
      due = timers_.extract(timers_.begin());
      due.value().second->when_ = kNever;
      update_next();
    }
    Timer& timer = *due.value().second;
    const auto again = timer.fire();
    if (again != kNever) put(timer, again, std::move(due));
  }
}

void Timers::update_next() { next_ = timers_.empty() ? kNever : timers_.begin()->first; }
