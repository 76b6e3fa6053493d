// A model checker for ParkSlot. It tries every order in which the steps of a waiter, the
// poller, a deadline and a close can happen, and fails if a wake-up is lost in any of them.
//
// It needs no threads. Each step reads or changes one cell of memory, and what an actor does
// next depends only on what its steps returned. To advance an actor, the model calls its function
// from the start. Recorded steps return their values again, the next step is performed and
// recorded, and the step after it throws.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "common/testing/holds.h"
#include "park_slot.h"

namespace {

using Value = std::uintptr_t;
enum Cell : std::uint8_t { kSlot, kSent, kEvent, kExpired, kClosed, kWoken };
constexpr std::array kCellNames = {"slot", "sent", "event", "expired", "closed", "woken"};
enum SlotState : std::uint8_t { kNil, kReady, kWait, kParked };  // as in park_slot.h
constexpr std::array kStateNames = {"nil", "ready", "wait", "parked"};
enum Outcome : std::uint8_t { kGotBytes = 1, kTimedOut = 2, kRefused = 4 };  // of a read

struct Actor {
  std::string name;
  std::function<void()> run;
};

class Model {
 public:
  explicit Model(std::vector<Actor> actors) : actors_(std::move(actors)) {}  // the waiter first
  std::uint64_t explore() { return explore({}); }  // returns the number of schedules
  std::size_t states() const { return schedules_.size(); }
  unsigned outcomes() const { return outcomes_; }  // every Outcome that the waiter had

  // A step of the running actor. Returns the value of a cell. If that is `expected`, or nothing
  // is expected, sets the cell to `desired`. If `waits`, blocks until the value is as expected.
  Value step(std::string_view operation, Cell cell, std::optional<Value> desired = {},
             std::optional<Value> expected = {}, bool waits = false) {
    std::vector<Value>& record = now_.records[actor_];
    if (replayed_ < record.size()) return record[replayed_++];
    const Value old = now_.cells[cell];
    if (stepped_ || (waits && old != expected)) throw EndOfRun();
    const Value next = desired && old == expected.value_or(old) ? *desired : old;
    now_.cells[cell] = next;
    record.push_back(old);
    ++replayed_;
    stepped_ = true;
    trace_ += fmt::format("\n  {}: {} {}: {}{}", actors_[actor_].name, kCellNames[cell], operation,
                          text(cell, old), next == old ? "" : " -> " + text(cell, next));
    if (record.size() > 100) fail_here("endless loop");
    if (cell == kWoken && now_.cells[kSlot] > kReady) fail_here("woken, but still in the slot");
    return old;
  }

  [[noreturn]] void fail_here(std::string_view what) const { fail("{}:{}", what, trace_); }
  void end_waiter(Outcome outcome) { outcome_ = outcome; }

 private:
  struct EndOfRun {};
  struct State {
    std::array<Value, kCellNames.size()> cells{};
    std::array<std::vector<Value>, 4> records;  // what the steps of each actor returned
    auto operator<=>(const State&) const = default;
  };

  static std::string text(Cell cell, Value value) {
    return cell == kSlot ? kStateNames[std::min<Value>(value, kParked)] : std::to_string(value);
  }

  // Performs the next step of an actor. Returns false if the actor has ended or is blocked.
  bool advance(std::size_t actor) {
    actor_ = actor;
    replayed_ = 0;
    stepped_ = false;
    try {
      actors_[actor].run();
    } catch (const EndOfRun&) {
    }
    return stepped_;
  }

  // Returns the number of schedules from this state to an end.
  std::uint64_t explore(const State& state) {
    if (const auto known = schedules_.find(state); known != schedules_.end()) return known->second;
    std::uint64_t count = 0;
    for (std::size_t actor = 0; actor < actors_.size(); ++actor) {
      const std::size_t length = trace_.size();
      now_ = state;
      if (advance(actor)) count += explore(State(now_));
      trace_.resize(length);
    }
    if (count == 0) check_end(state);
    return schedules_[state] = std::max<std::uint64_t>(count, 1);
  }

  void check_end(const State& state) {
    now_ = state;
    outcome_.reset();
    (void)advance(0);  // replays the waiter, which sets outcome_ if it ends
    if (!outcome_) fail_here("lost wake-up");
    if (now_.cells[kWoken] != 0) fail_here("extra wake-up");
    if (now_.cells[kSlot] > kReady) fail_here("ended, but still in the slot");
    outcomes_ |= *outcome_;
  }

  const std::vector<Actor> actors_;
  std::map<State, std::uint64_t> schedules_;  // how many lead from each state to an end
  unsigned outcomes_ = 0;
  State now_;
  std::string trace_;         // the steps that led to now_
  std::size_t actor_ = 0;     // the running actor
  std::size_t replayed_ = 0;  // its number of steps in this run
  bool stepped_ = false;      // its last step was new
  std::optional<Outcome> outcome_;
};

Model* model = nullptr;  // global because ParkSlot constructs its own atomic

// A cell of the model, with the interface of std::atomic.
template <typename T>
struct StepAtomic {
  explicit StepAtomic(Cell its) : cell(its) {}
  explicit StepAtomic(T) {}  // in a ParkSlot, which is constructed in each run: changes nothing
  T load() const { return model->step("load", cell); }
  T exchange(T desired) const { return model->step("exchange", cell, desired); }
  void store(T desired) const { model->step("store", cell, desired); }
  bool compare_exchange_strong(T& expected, T desired) const {
    const T old = model->step("compare_exchange", cell, desired, expected);
    return std::exchange(expected, old) == old;
  }
  T take() const { return model->step("take", cell, 0, 1, true); }  // blocks until it is 1
  Cell cell = kSlot;
};

using Slot = ParkSlot<Goroutine, StepAtomic>;
Goroutine goroutine;
const StepAtomic<Value> state(kSlot);
const StepAtomic<Value> sent(kSent);    // the number of bytes that have arrived
const StepAtomic<Value> event(kEvent);  // 1: the kernel has an event for the poller
const StepAtomic<Value> expired(kExpired);
const StepAtomic<Value> closed(kClosed);
const StepAtomic<Value> woken(kWoken);  // 1: make_ready was called, and the waiter has not run

// ---- The actors. S is Slot, or a flawed one.

// A read, as in PollOperation::attempt and Scheduler::run. For `drained` see Read in net.h.
template <typename S>
Outcome read_once(Value& received, bool& drained) {
  S slot;
  Outcome status = kTimedOut;
  bool gave_up = false;
  const auto call = [&] {
    if (std::exchange(drained, false)) return kTimedOut;
    const Value before = std::exchange(received, sent.load());
    drained = received > before;
    return drained ? kGotBytes : kTimedOut;
  };
  const auto done = [&] {
    status = closed.load() ? kRefused : call();
    return status != kTimedOut;
  };
  const auto gives_up = [&] { return gave_up = closed.load() || expired.load(); };
  if (closed.load()) return kRefused;
  if (expired.load()) return kTimedOut;
  while (!call_or_prepare(slot, done, gives_up))
    if (slot.commit(goroutine)) (void)woken.take();
  if (status == kTimedOut && !gave_up) model->fail_here("timed out without a deadline");
  if (status == kTimedOut) (void)done();
  return status;
}

// Reads until it has `wanted` bytes, or a read fails. After a timeout, a persistent waiter takes
// the deadline back and reads again.
template <typename S = Slot>
Actor waiter(Value wanted, bool persistent = false) {
  const auto run = [=] {
    Outcome outcome = kGotBytes;
    bool drained = false;
    for (Value received = 0; received < wanted;) {
      outcome = read_once<S>(received, drained);
      if (outcome == kRefused || (outcome == kTimedOut && !persistent)) break;
      if (outcome == kTimedOut) expired.store(0);
    }
    model->end_waiter(outcome);
  };
  return {persistent ? "persistent waiter" : "waiter", run};
}

void wake(const Goroutine* parked) {
  if (parked && woken.exchange(1) == 1) model->fail_here("extra wake-up");
}

void interrupt(const StepAtomic<Value>& reason) {
  reason.store(1);
  wake(Slot().interrupt());
}

const Actor kDeadline = {"deadline", [] { interrupt(expired); }};
const Actor kClose = {"close", [] { interrupt(closed); }};
const Actor kOneByte = {"poller", [] {
                          sent.store(1);
                          wake(Slot().report());
                        }};

// Two bytes, which make one event if the second byte arrives before the poller takes the event.
const Actor kClient = {"client", [] {
                         for (Value count = 1; count <= 2; ++count) {
                           sent.store(count);
                           event.store(1);
                         }
                       }};
const Actor kPoller = {"poller", [] {
                         while (event.take()) wake(Slot().report());
                       }};

// Returns every outcome of the waiter. Throws a Failure with the first schedule that is wrong.
unsigned explore(const std::vector<Actor>& actors) {
  Model all(actors);
  model = &all;
  const std::uint64_t schedules = all.explore();
  std::string names;
  for (const Actor& actor : actors) names += (names.empty() ? "" : ", ") + actor.name;
  fmt::print("{}: {} schedules, {} states\n", names, schedules, all.states());
  return all.outcomes();
}

// ---- Flawed designs.

// The waiter parks without setting `wait` first.
struct NoWait : Slot {
  bool prepare() const { return state.exchange(SlotState::kNil) == SlotState::kNil; }
  bool commit(Goroutine& waiting) const {
    Value nil = SlotState::kNil;
    return state.compare_exchange_strong(nil, reinterpret_cast<Value>(&waiting));
  }
};

// The waiter checks for a deadline or a close only before it sets `wait`.
struct NoSecondCheck : Slot {};
bool call_or_prepare(NoSecondCheck& slot, auto done, auto gives_up) {
  while (!done() && !gives_up())
    if (slot.prepare()) return false;
  return true;
}

// The interrupt comes before the deadline is visible.
const Actor kLateDeadline = {"deadline", [] {
                               wake(Slot().interrupt());
                               expired.store(1);
                             }};

// Another actor may end the wait between the load and the store, and wake the waiter too.
const Actor kLoadAndStore = {"deadline", [] {
                               expired.store(1);
                               if (state.load() <= kWait) return wake(Slot().interrupt());
                               state.store(kNil);
                               wake(&goroutine);
                             }};

}  // namespace

TEST_CASE("park-orders: an event and a deadline and a close in every order: no wake-up is lost") {
  for (unsigned chosen = 1; chosen < 8; ++chosen) {  // the outcomes that must be possible
    std::vector<Actor> actors = {waiter(1)};
    if (chosen & kGotBytes) actors.push_back(kOneByte);
    if (chosen & kTimedOut) actors.push_back(kDeadline);
    if (chosen & kRefused) actors.push_back(kClose);
    CHECK(explore(actors) == chosen);
  }
}

TEST_CASE("park-drained: a read that skips its system call: it gets the next byte") {
  CHECK(explore({waiter(2), kClient, kPoller}) == kGotBytes);
  CHECK(explore({waiter(2), kClient, kPoller, kClose}) == (kGotBytes | kRefused));
}

TEST_CASE("park-deadline-taken-back: a deadline that is taken back: no event is lost") {
  const Actor deadline = {"deadline taken back", [] {
                            interrupt(expired);
                            expired.store(0);
                          }};
  CHECK(explore({waiter(1), deadline, kOneByte}) == (kGotBytes | kTimedOut));
  CHECK(explore({waiter(1, true), kDeadline, kOneByte}) == kGotBytes);
}

TEST_CASE("park-flaws: a flawed design: the checker finds the flaw") {
  const auto check = [](const char* flaw, const std::vector<Actor>& actors) {
    CHECK_THROWS_WITH_AS(explore(actors), doctest::Contains(flaw), Failure);
  };
  check("lost wake-up", {waiter<NoWait>(1), kDeadline});
  check("lost wake-up", {waiter<NoSecondCheck>(1), kDeadline});
  check("lost wake-up", {waiter(1), kLateDeadline});
  check("extra wake-up", {waiter(1), kLoadAndStore, kClose});
}

TEST_CASE("park-table: each operation in each state: the expected result and next state") {
  using Function = std::function<bool(ParkSlot<Goroutine>&)>;
  // A function, the state in which it returns true, and the states after nil, ready, wait, parked.
  using Row = std::tuple<Function, std::optional<SlotState>, std::vector<SlotState>>;
  const std::vector<Row> table = {
      {[](auto& s) { return s.prepare(); }, kNil, {kWait, kNil}},  // otherwise fatal
      {[](auto& s) { return s.commit(goroutine); }, kWait, {kNil, kReady, kParked, kParked}},
      {[](auto& s) { return s.reset(), false; }, {}, {kNil, kNil, kNil}},
      {[](auto& s) { return s.report() == &goroutine; }, kParked, {kReady, kReady, kNil, kNil}},
      {[](auto& s) { return s.interrupt() == &goroutine; }, kParked, {kNil, kReady, kNil, kNil}},
  };
  for (const auto& [function, succeeds_in, next] : table) {
    for (std::size_t from = 0; from < next.size(); ++from) {
      ParkSlot<Goroutine> slot;
      if (from == kReady) (void)slot.report();
      if (from >= kWait) (void)slot.prepare();
      if (from == kParked) (void)slot.commit(goroutine);
      CHECK(function(slot) == (from == succeeds_in));
      CHECK(slot.commit(goroutine) == (next[from] == kWait));  // parks if it is `wait`
      CHECK((slot.interrupt() != nullptr) == (next[from] >= kWait));
      CHECK(slot.prepare() == (next[from] != kReady));
    }
  }
}
