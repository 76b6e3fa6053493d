// Timers: what is due when. Go: runtime/time.go.
//
// Go has a heap of them for each P, each with its own lock, so that setting one hardly ever
// waits. Here there is one set, and one lock. It is held for a moment only: a deadline that
// is put off is not moved in the set (netpoll.h).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <set>
#include <utility>

using Clock = std::chrono::steady_clock;

constexpr auto kNever = Clock::time_point::max();

class Timer {
 public:
  // Called when it is due, by a worker; it is no longer in the set then. Returns when it
  // is to be called again; kNever: it may be gone.
  virtual Clock::time_point fire() = 0;

 protected:
  ~Timer() = default;

 private:
  friend class Timers;

  Clock::time_point when_ = kNever;  // the set's lock guards it
};

class Timers {
 public:
  // `sooner` is called when what was added is due before all others: a worker that sleeps
  // until the next one has to know.
  explicit Timers(std::function<void()> sooner) : sooner_(std::move(sooner)) {}

  // Any thread may call these. A timer that is in the set already is moved if `when` is
  // earlier, and only then. One that has been removed may still be about to fire, by another
  // thread.
  void add(Timer& timer, Clock::time_point when) { put(timer, when, {}); }
  void remove(Timer& timer);

  // When the next is due: never, if there is none.
  Clock::time_point next() const { return next_.load(); }
  bool due() const { return next() <= Clock::now(); }
  void fire_due();

 private:
  using Set = std::set<std::pair<Clock::time_point, Timer*>>;

  void put(Timer& timer, Clock::time_point when, Set::node_type node);
  void update_next();

  std::mutex mutex_;
  Set timers_;
  std::atomic<Clock::time_point> next_{kNever};
  std::function<void()> sooner_;
};
