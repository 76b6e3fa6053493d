// The races, each with its window held open: what must not be lost comes just then.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "common/testing/holds.h"
#include "goroutines_test.h"

namespace {

constexpr Window kUntilParked[] = {Window::after_call, Window::before_recheck,
                                   Window::before_commit};

// Reads once, while `then` happens at the window, once. Two workers: one is in the window,
// the other polls. A wake-up that is lost ends with the deadline of two seconds.
Status read_while(Window window, const std::function<void(Pair&, Scheduler&)>& then) {
  Status status = Status::ok;
  run(2, [&](Scheduler& scheduler) -> Task {
    Pair pair(scheduler);
    co_await sleep_for(2ms);  // until what the registration reports has been reported
    pair.near->set_read_deadline(Clock::now() + 2s);
    std::atomic<bool> done = false;
    const Hook hook(window, [&] {
      if (!done.exchange(true)) then(pair, scheduler);
    });
    status = (co_await pair.near->read()).status;
    CHECK(done);
  });
  return status;
}

// Does it, and waits until the poller has reported it.
void and_reported(const std::function<void()>& action) {
  Event reported;
  const Hook hook(Window::after_report, [&] { reported.set(); });
  action();
  CHECK(reported.wait());
}

}  // namespace

TEST_CASE("each transition of the state machine") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pipe silent = make_pipe();  // nobody writes, so there is no news but ours
      Hold hold(scheduler.netpoller().open(Fd(::dup(silent.read_end.get()))));
      PollDesc& desc = *hold.desc();
      Goroutine waiter;
      const auto wait = [&] { return !desc.block(Direction::read); };
      const auto park = [&] { return desc.park(Direction::read, waiter); };
      const auto news = [&] { return desc.unblock(Direction::read, true); };
      const auto deadline = [&] { return desc.unblock(Direction::read, false); };

      CHECK(deadline() == nullptr);  // nil: a deadline leaves nothing behind
      CHECK((wait() && park()));
      CHECK(news() == &waiter);  // parked to nil: woken
      CHECK(news() == nullptr);  // nil to ready: not again, but kept
      CHECK(news() == nullptr);  // ready stays
      CHECK(deadline() == nullptr);
      CHECK(!wait());             // ready to nil: call again
      CHECK((wait() && park()));  // and that was all
      CHECK(deadline() == &waiter);
      CHECK(wait());             // nothing is left of it
      CHECK(news() == nullptr);  // wait to nil: told
      CHECK(!park());
      CHECK(wait());
      CHECK(deadline() == nullptr);
      CHECK(!park());
      CHECK(wait());
      desc.reset(Direction::read);  // wait to nil: it does not park
      CHECK(!park());
      CHECK(news() == nullptr);  // kept, since nobody waits
      CHECK(!wait());
      co_return;
    });
  });
}

TEST_CASE("what is reported before the reader has parked is not lost") {
  holds([] {
    for (const Window window : kUntilParked) {
      CAPTURE(static_cast<int>(window));
      CHECK(read_while(window, [](Pair& pair, Scheduler&) {
              and_reported([&] { pair.send("!"); });
            }) == Status::ok);
    }
  });
}

TEST_CASE("a deadline that passes before the reader has parked is not lost") {
  holds([] {
    for (const Window window : kUntilParked) {
      CAPTURE(static_cast<int>(window));
      const auto start = Clock::now();
      CHECK(read_while(window, [](Pair& pair, Scheduler&) {
              pair.near->set_read_deadline(Clock::time_point::min());
            }) == Status::timed_out);
      CHECK(ms_since(start) < 1500);  // it was that one, not the other of two seconds
    }
  });
}

TEST_CASE("a close before the reader has parked is not lost") {
  holds([] {
    for (const Window window : kUntilParked) {
      CAPTURE(static_cast<int>(window));
      CHECK(read_while(window, [](Pair& pair, Scheduler&) { pair.near->close(); }) ==
            Status::closed);
    }
  });
}

TEST_CASE("a deadline that is taken back before the reader runs does not end the read") {
  holds([] {
    // It passes in the window, and wakes the reader; before that looks it is gone again.
    for (const Window window : kUntilParked) {
      CAPTURE(static_cast<int>(window));
      CHECK(read_while(window, [](Pair& pair, Scheduler&) {
              pair.near->set_read_deadline(Clock::time_point::min());
              pair.near->set_read_deadline(kNever);
              pair.send("!");
            }) == Status::ok);
    }
  });
}

TEST_CASE("a read that its deadline ended leaves what has come to the next") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      Pair pair(scheduler);
      std::atomic<bool> sent = false;
      const Hook hook(Window::after_report, [&] {  // news and deadline, before it runs
        if (sent.exchange(false)) pair.near->set_read_deadline(Clock::time_point::min());
      });
      std::thread sender([&] {
        std::this_thread::sleep_for(20ms);  // it waits by then
        pair.send("a");
        std::this_thread::sleep_for(20ms);  // and again
        sent = true;
        pair.send("b");
      });
      CHECK((co_await pair.near->read()).bytes() == "a");  // and that was all there was
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      sender.join();
      pair.near->set_read_deadline(Clock::now() + 500ms);  // it does not wait for more
      CHECK((co_await pair.near->read()).bytes() == "b");
    });
  });
}

TEST_CASE("a read that its deadline ended before it parked does not take the next one's news") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      Pair pair(scheduler);
      co_await sleep_for(5ms);  // until what the registration reports has been reported
      std::atomic<int> calls = 0;
      const Hook hook(Window::after_call, [&] {
        const int call = ++calls;
        if (call == 1) pair.near->set_read_deadline(Clock::time_point::min());
        if (call == 2) and_reported([&] { pair.send("!"); });
      });
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      pair.near->set_read_deadline(Clock::now() + 2s);
      CHECK((co_await pair.near->read()).status == Status::ok);
    });
  });
}

TEST_CASE("a write that got room before its deadline is finished though it runs after it") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const NumberedPair pair(scheduler);
      set_non_blocking(pair.far);
      const std::size_t fits = fill(pair.far);  // the other way it is the same
      Status status = Status::closed;
      Event ended;
      go(write_bytes(*pair.near, fits + fits / 2, status, ended));
      co_await sleep_for(10ms);
      CHECK_FALSE(ended);
      std::atomic<int> reports = 0;
      const Hook hook(Window::after_report, [&] {
        if (reports++ == 0) pair.near->set_write_deadline(Clock::time_point::min());
      });
      std::array<char, 16 * 1024> bytes;
      while (read_some(pair.far, bytes).status == Io::ok) {
      }
      while (!ended) co_await sleep_for(1ms);
      CHECK(reports > 0);
      CHECK(status == Status::ok);
    });
  });
}

TEST_CASE("a number is not given away before its reader has left") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const NumberedPair pair(scheduler);
      Event leaving;
      Event leave;
      Event ended;
      const Hook hook(Window::before_unlock, [&] {
        leaving.set();
        CHECK(leave.wait());
      });
      go([](Conn& conn, Event& done) -> Task {
        CHECK((co_await conn.read()).status == Status::closed);
        done.set();
      }(*pair.near, ended));
      co_await sleep_for(5ms);
      pair.near->close();
      CHECK(leaving.wait());
      CHECK(::fcntl(pair.number, F_GETFD) >= 0);  // closed, but for its user
      leave.set();
      CHECK(ended.wait());
      CHECK(wait_until(patience, [&] { return ::fcntl(pair.number, F_GETFD) < 0; }));
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("an event for a number's former owner does not reach the next") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const NumberedPair former(scheduler);
      co_await sleep_for(5ms);  // until what its registration reports has been reported
      std::unique_ptr<NumberedPair> next;
      std::atomic<int> tries = 0;
      std::atomic<bool> replaced = false;
      const auto read_once = [](Conn& conn) -> Task {
        CHECK((co_await conn.read()).status == Status::closed);
      };
      // The poller has the event; now the number changes hands, and its new owner parks.
      const Hook hook(Window::before_report, [&] {
        if (replaced.exchange(true)) return;
        former.near->close();
        next = std::make_unique<NumberedPair>(scheduler);
        CHECK(next->number == former.number);
        set_hook(Window::before_call, [&] { ++tries; });
        scheduler.go(read_once(*next->near));
        CHECK(wait_until(patience, [&] { return tries == 1; }));
        std::this_thread::sleep_for(5ms);  // parked, or about to: the event would do either way
      });
      (void)write_some(former.far, "!");
      while (tries == 0) co_await sleep_for(1ms);
      co_await sleep_for(20ms);
      CHECK(tries == 1);
      set_hook(Window::before_call, nullptr);
      next->near->close();
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("an operation on a number's former owner does not wait behind the next") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const auto read_third = [](Conn& conn, Status& status, Event& done) -> Task {
        // Two are done at once. The third is not tried before all others had their turn.
        (void)co_await conn.write_all("a");
        (void)co_await conn.write_all("b");
        status = (co_await conn.read()).status;
        done.set();
      };
      Status late = Status::ok;
      Status other = Status::ok;
      Event late_ended;
      Event next_ended;
      const NumberedPair former(scheduler);
      go(read_third(*former.near, late, late_ended));
      co_await yield();  // until it stands behind us
      former.near->close();
      const NumberedPair next(scheduler);
      CHECK(next.number == former.number);
      go(read_into(*next.near, other, next_ended));
      co_await yield();
      co_await sleep_for(50ms);
      CHECK(late_ended);
      CHECK(late == Status::closed);
      CHECK_FALSE(next_ended);
      next.near->close();
      while (!next_ended || !late_ended) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("an operation does not wait for a lock that has gone to the number's next owner") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      Status first = Status::ok;
      Status other = Status::ok;
      Event first_holds;
      Event first_ended;
      Event other_holds;
      Event other_ended;
      const NumberedPair former(scheduler);
      std::unique_ptr<NumberedPair> next;
      std::atomic<int> commits = 0;  // of the first reader, of us, of the next owner's
      const Hook hook(Window::before_commit, [&] {
        const int before = commits++;
        if (before == 0) first_holds.set();
        if (before == 2) other_holds.set();
        if (before != 1) return;
        former.near->close();
        CHECK(first_ended.wait());
        next = std::make_unique<NumberedPair>(scheduler);
        CHECK(next->number == former.number);
        go(read_into(*next->near, other, other_ended));
        CHECK(other_holds.wait());
      });
      go(read_into(*former.near, first, first_ended));
      CHECK(first_holds.wait());
      CHECK((co_await former.near->read()).status == Status::closed);
      CHECK(first == Status::closed);
      CHECK_FALSE(other_ended);
      next->near->close();
      while (!other_ended) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("a deadline that is set as its connection closes does not reach the next owner") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const NumberedPair former(scheduler);
      std::unique_ptr<NumberedPair> next;
      Event replaced;
      std::thread closer;
      // Whose it is has been looked at; now the number changes hands, if it can.
      const Hook hook(Window::before_deadline, [&] {
        if (closer.joinable()) return;
        closer = std::thread([&] {
          former.near->close();
          next = std::make_unique<NumberedPair>(scheduler);
          replaced.set();
        });
        (void)replaced.wait(100ms);
      });
      former.near->set_read_deadline(Clock::time_point::min());
      closer.join();
      CHECK(next->number == former.number);
      (void)write_some(next->far, "!");
      CHECK((co_await next->near->read()).status == Status::ok);
    });
  });
}

TEST_CASE("work that comes as a worker is about to block is done at once") {
  holds([] {
    for (const Window window : {Window::before_idle, Window::before_block}) {
      CAPTURE(static_cast<int>(window));
      run(1, [&](Scheduler& scheduler) -> Task {
        std::atomic<bool> given = false;
        std::atomic<double> done_after = 1e9;
        const auto start = Clock::now();
        const Hook hook(window, [&] {
          if (given.exchange(true)) return;
          std::thread([&] {  // from outside: into the global queue
            scheduler.go([](std::atomic<double>& after, Clock::time_point since) -> Task {
              after = ms_since(since);
              co_return;
            }(done_after, start));
          })
              .join();
        });
        co_await sleep_for(2s);  // the poll is for so long, if nothing ends it
        CHECK(given);
        CHECK(done_after < 1000);
      });
    }
  });
}
