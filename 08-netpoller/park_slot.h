// ParkSlot: where a goroutine waits for one direction of a descriptor.
// Go: rg and wg of pollDesc, netpollblock and netpollunblock in runtime/netpoll.go.
//
//   nil      no goroutine waits, and no event was reported
//   ready    an event was reported and not yet consumed
//   wait     a goroutine is about to park
//   parked   a goroutine waits: the state is its address
// No wake-up is lost. The waiter makes its system call, sets `wait`, looks for a deadline or a
// close once more, and parks. A deadline or a close is made visible before it interrupts. As
// all of this is sequentially consistent, the waiter sees it, or is found in `wait` or `parked`.
// An event that finds neither leaves `ready`, which the waiter finds when it sets `wait`.
#pragma once

#include <atomic>
#include <cstdint>

#include "task.h"

template <typename Waiter, template <typename> class Atomic = std::atomic>
class ParkSlot {
 public:
  // The waiter, before it parks: nil -> wait. If an event was reported since, consumes that
  // (ready -> nil) and returns false: the system call has to be made again.
  bool prepare() {
    std::uintptr_t old = kNil;
    if (state_.compare_exchange_strong(old, kWait)) return true;
    if (old != kReady) fatal("two goroutines wait for one direction of a descriptor");
    reset();
    return false;
  }

  // The waiter's worker: wait -> parked. Returns false if the wait was ended before.
  bool commit(Waiter& waiter) {
    std::uintptr_t old = kWait;
    return state_.compare_exchange_strong(old, reinterpret_cast<std::uintptr_t>(&waiter));
  }

  void reset() { state_.store(kNil); }  // the waiter, when it does not park after all

  // The poller: nil -> ready; wait, parked -> nil. Returns the goroutine that was parked.
  Waiter* report() { return end_wait(kReady); }

  // A deadline or a close: wait, parked -> nil. Returns the goroutine that was parked.
  Waiter* interrupt() { return end_wait(kNil); }

 private:
  static constexpr std::uintptr_t kNil = 0;
  static constexpr std::uintptr_t kReady = 1;
  static constexpr std::uintptr_t kWait = 2;
  Waiter* end_wait(std::uintptr_t from_nil) {
    std::uintptr_t old = state_.load();
    while (old != kReady && !state_.compare_exchange_strong(old, old == kNil ? from_nil : kNil)) {
    }
    // NOLINTNEXTLINE(performance-no-int-to-ptr): commit() stored the number
    return old > kWait ? reinterpret_cast<Waiter*>(old) : nullptr;
  }

  Atomic<std::uintptr_t> state_{kNil};
};

// The waiter's side. Returns true if done() or the waiter gives up, false to park it.
bool call_or_prepare(auto& slot, auto done, auto gives_up) {
  while (!done()) {
    if (!slot.prepare()) continue;
    if (!gives_up()) return false;
    slot.reset();
    break;
  }
  return true;
}
