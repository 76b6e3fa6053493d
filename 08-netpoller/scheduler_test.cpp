// What Go's own tests ask of its scheduler (runtime/proc_test.go): that nobody keeps the
// others out; and what a task owes to its caller.
#include <algorithm>
#include <atomic>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "goroutines_test.h"

namespace {

Task start_another(const Event& end) {
  if (!end) go(start_another(end));
  co_return;
}

// Both workers have nothing to do: one polls, one sleeps. At `start` the poll returns one
// goroutine, which takes its time; nobody polls now, unless the sleeper sees it.
void compute_when(const std::function<void(const std::function<void()>& start)>& when) {
  run(2, [&](Scheduler& scheduler) -> Task {
    const Pair first(scheduler);
    const Pair second(scheduler);
    Event computes;
    Event second_has_read;
    const auto compute = [&]() -> Task {
      (void)co_await first.near->read();
      computes.set();
      second.send("!");
      CHECK(second_has_read.wait(2s));
    };
    Status status = Status::closed;
    go(compute());
    go(read_into(*second.near, status, second_has_read));
    co_await blocking([&] {
      when([&] {
        first.send("!");
        (void)computes.wait(50ms);  // unless the poller waits for its caller
      });
      CHECK(second_has_read.wait());
    });
    while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
  });
}

}  // namespace

TEST_CASE("goroutines that start each other hold up neither timers nor the network") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      Event end;
      go(start_another(end));
      co_await sleep_for(1ms);
      pair.send("hello");
      CHECK((co_await pair.near->read()).bytes() == "hello");
      std::thread sender([&pair] {
        std::this_thread::sleep_for(20ms);
        pair.send("again");
      });
      pair.near->set_read_deadline(Clock::now() + 500ms);  // there is always other work
      CHECK((co_await pair.near->read()).bytes() == "again");
      end.set();
      sender.join();
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("a timer that is due sooner than all others shortens the poll") {
  struct Never : Timer {
    Clock::time_point fire() override { return kNever; }
  };
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      Never far_off;
      Event fired;
      struct Soon : Timer {
        explicit Soon(Event& event) : event_(event) {}
        Clock::time_point fire() override {
          event_.set();
          return kNever;
        }
        Event& event_;
      } soon(fired);
      scheduler.timers().add(far_off, Clock::now() + 1h);
      std::thread other;
      Event blocked;
      const Hook hook(Window::before_block, [&] { blocked.set(); });
      std::atomic<double> after = 1e9;
      other = std::thread([&] {
        if (!blocked.wait()) return;
        std::this_thread::sleep_for(20ms);  // it is in the poll now; if not, no harm
        const auto start = Clock::now();
        scheduler.timers().add(soon, start + 20ms);
        if (fired.wait(5s)) after = ms_since(start);
        scheduler.timers().remove(far_off);
        scheduler.go([]() -> Task { co_return; }());
      });
      co_await blocking([&] { other.join(); });
      CHECK(after >= 20);
      CHECK(after < 500);
    });
  });
}

TEST_CASE("goroutines that compute and yield do not keep the network out") {
  holds([] {
    // Counted in turns of a millisecond, of which two workers do two at a time: what else
    // the machine does meanwhile delays these too.
    std::vector<int> delays;
    run(2, [&](Scheduler& scheduler) -> Task {
      Pair pair(scheduler);
      std::atomic<bool> stop = false;
      std::atomic<int> turns = 0;
      std::atomic<int> sent = 0;
      const auto hog = [&]() -> Task {
        while (!stop) {
          const auto end = Clock::now() + 1ms;
          while (Clock::now() < end) {
          }
          ++turns;
          co_await yield();
        }
      };
      const auto reply = [&]() -> Task {
        for (;;) {
          const Received in = co_await pair.near->read();
          if (in.status != Status::ok) co_return;
          delays.push_back(turns - sent);
          if (co_await pair.near->write_all(in.bytes()) != Status::ok) co_return;
        }
      };
      for (int i = 0; i < 4; ++i) go(hog());
      go(reply());
      std::thread client([&] {
        for (int i = 0; i < 200; ++i) {
          sent = turns.load();
          pair.send("!");
          if (!wait_for(pair.far, POLLIN, patience)) break;
          char byte = 0;
          (void)read_some(pair.far, {&byte, 1});
        }
        stop = true;
      });
      co_await blocking([&] { client.join(); });  // no timer, for which there would be a poll
      pair.near->close();
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
    REQUIRE(delays.size() == 200);
    std::sort(delays.begin(), delays.end());
    const int p99 = delays[198];
    CAPTURE(p99);
    CHECK(p99 < 40);  // 20 ms
  });
}

TEST_CASE("a goroutine that computes for long does not keep the others when a worker is free") {
  holds([] {
    compute_when([](const auto& start) {
      std::this_thread::sleep_for(30ms);
      start();
    });
  });
}

TEST_CASE("nor does it after a pause in which nobody has looked") {
  holds([] {
    compute_when([](const auto& start) {
      std::this_thread::sleep_for(300ms);
      start();
    });
  });
}

TEST_CASE("nor does it when the pause ends as the sleeper has looked for the last time") {
  holds([] {
    compute_when([](const auto& start) {
      std::atomic<bool> once = false;
      Event started;
      const Hook hook(Window::after_unwatched, [&] {
        if (once.exchange(true)) return;
        start();
        started.set();
      });
      CHECK(started.wait());
    });
  });
}

TEST_CASE("a task that is called may wait and returns to its caller and throws to it") {
  holds([] {
    run(1, [](Scheduler&) -> Task {
      int depth = 0;
      const std::function<Task(int)> descend = [&](int levels) -> Task {
        ++depth;
        if (levels == 0) throw std::runtime_error("the bottom");
        co_await sleep_for(1ms);
        co_await descend(levels - 1);
      };
      std::string what;
      try {
        co_await descend(10);
      } catch (const std::runtime_error& error) {
        what = error.what();
      }
      CHECK(what == "the bottom");
      CHECK(depth == 11);
    });
  });
}

TEST_CASE("a million calls that end at once need no stack") {
  holds([] {
    run(1, [](Scheduler&) -> Task {
      int count = 0;
      const auto call = [&]() -> Task {
        ++count;
        co_return;
      };
      for (int i = 0; i < 1'000'000; ++i) co_await call();
      CHECK(count == 1'000'000);
    });
  });
}

TEST_CASE("what a goroutine does not catch ends it and no other") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      go([]() -> Task {
        co_await yield();
        throw std::runtime_error("as the test wants it");
      }());
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("what main throws is thrown by run") {
  holds([] {
    Scheduler scheduler(2, 1);
    const auto main = []() -> Task {
      co_await yield();
      throw std::runtime_error("as the test wants it");
    };
    CHECK_THROWS_AS(scheduler.run(main()), std::runtime_error);
  });
}

TEST_CASE("a request of three steps is three lines") {
  holds([] {
    // The steps are those of 07's test of the same request.
    const auto look_up = [](std::string_view name) { return "user of " + std::string(name); };
    const auto fetch = [](const std::string& user) { return "page of " + user; };
    const auto store = [](const std::string& page) { return std::to_string(page.size()); };
    run(1, [&](Scheduler& scheduler) -> Task {
      const auto answer = [&](Conn& conn) -> Task {
        const Received name = co_await conn.read();
        const std::string user = co_await blocking([&] { return look_up(name.bytes()); });
        const std::string page = co_await blocking([&] { return fetch(user); });
        const std::string size = co_await blocking([&] { return store(page); });
        const std::string reply = size + ": " + page;
        (void)co_await conn.write_all(reply);
      };
      Pair pair(scheduler);
      Conn far(scheduler.netpoller().open(std::move(pair.far)));
      go(answer(*pair.near));
      CHECK(co_await far.write_all("x") == Status::ok);
      const Received reply = co_await far.read();
      CHECK(reply.bytes() == "17: page of user of x");
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("blocking returns what the function returns and throws what it throws") {
  holds([] {
    run(1, [](Scheduler&) -> Task {
      const auto worker = std::this_thread::get_id();
      CHECK(co_await blocking([] { return std::this_thread::get_id(); }) != worker);
      CHECK(co_await blocking([] { return std::string("result"); }) == "result");
      bool thrown = false;
      try {
        co_await blocking([] { throw std::runtime_error("as the test wants it"); });
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      CHECK(thrown);
    });
  });
}
