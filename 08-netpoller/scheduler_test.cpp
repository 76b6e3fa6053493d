// What the scheduler promises: no ready goroutine waits beside a free worker, none starves, and
// none is forgotten. Also what a Task owes to its caller. Go: runtime/proc_test.go.
#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/testing/holds.h"
#include "goroutines_test.h"

namespace {

// ---- Helpers: work-conserving.

// Two workers, of which one waits in the poll and the other sleeps.
bool is_idle(Scheduler& scheduler) {
  return scheduler.trace().find("running=0 sleeping=1") != std::string::npos;
}

void wait_until_idle(Scheduler& scheduler) {
  if (!wait_until(patience, [&] { return is_idle(scheduler); })) fail("{}", scheduler.trace());
}

// Each of two goroutines keeps its worker until the other has started, or for `limit`.
struct Meeting {
  Event started[2];
  Event ended[2];
  bool met[2] = {false, false};
  milliseconds limit = 5s;

  bool both_met() const { return met[0] && met[1]; }
  void wait() const {
    for (const Event& one : ended) CHECK(one.wait(2 * patience));
  }
  void arrive(std::size_t which) {
    started[which].set();
    met[which] = started[1 - which].spin(limit);
    ended[which].set();
  }
};

Task<> meet(Meeting& meeting, std::size_t which) {
  meeting.arrive(which);
  co_return;
}

Task<> meet_after_read(Conn& conn, Meeting& meeting, std::size_t which) {
  (void)co_await conn.read();
  meeting.arrive(which);
}

Task<> meet_after_write(Conn& conn, Meeting& meeting, std::size_t which) {
  (void)co_await conn.write_all(std::string(16 << 20, 'x'));
  meeting.arrive(which);
}

// Two goroutines are parked in read. The second socket is written when the first goroutine has
// started, which then keeps its worker until the second has started, or for `limit`. Returns
// whether the second did start meanwhile.
bool second_is_served(microseconds watch, milliseconds pause, milliseconds limit) {
  bool served = false;
  run(
      2,
      [&](Scheduler& scheduler) -> Task<> {
        Pair first = unix_pair(scheduler);
        Pair second = unix_pair(scheduler);
        Meeting meeting;
        meeting.limit = limit;
        go(meet_after_read(first.near, meeting, 0));
        go(meet_after_read(second.near, meeting, 1));
        co_await blocking([&] {
          wait_until_idle(scheduler);
          std::this_thread::sleep_for(pause);
          first.send("!");
          CHECK(meeting.started[0].wait());
          second.send("!");
          meeting.wait();
        });
        served = meeting.met[0];
        co_await until_alone(scheduler);
      },
      watch);
  return served;
}

// ---- Helpers: fairness.

// What happened, in order. One worker writes it, without a lock.
struct Log {
  struct Entry {
    std::size_t goroutine;
    bool event;  // true: an event for it was made; false: it ran
  };
  std::vector<Entry> entries;

  void ran(std::size_t goroutine) { entries.push_back({goroutine, false}); }
  void event_for(std::size_t goroutine) { entries.push_back({goroutine, true}); }

  // The most turns that any other goroutine had between an entry of kind `event` and the next turn
  // of the entry's goroutine. Successive runs of one goroutine are one turn.
  int most_turns_before(bool event, std::size_t first, std::size_t end) const {
    int most = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::size_t waiter = entries[i].goroutine;
      if (entries[i].event != event || waiter < first || waiter >= end) continue;
      std::map<std::size_t, int> turns;
      std::size_t last = waiter;
      for (std::size_t j = i + 1; j < entries.size(); ++j) {
        if (entries[j].event) continue;
        const std::size_t runs = entries[j].goroutine;
        if (runs == waiter) {
          for (const auto& [other, count] : turns) most = std::max(most, count);
          break;
        }
        if (runs != last) ++turns[runs];
        last = runs;
      }
    }
    return most;
  }
};

// ---- Helpers: goroutines that are left.

// Lives in a coroutine's frame, and records the state at the frame's destruction.
struct Leftovers {
  std::atomic<int> alive = 0;
  Event job_ended;
  bool after_jobs = true;
  bool by_main_thread = true;
  const std::thread::id main_thread = std::this_thread::get_id();
};

struct InFrame {
  explicit InFrame(Leftovers& all) : leftovers(&all) { ++leftovers->alive; }
  InFrame(InFrame&& other) noexcept : leftovers(std::exchange(other.leftovers, nullptr)) {}
  InFrame& operator=(InFrame&&) = delete;
  ~InFrame() {
    if (!leftovers) return;
    --leftovers->alive;
    if (!leftovers->job_ended) leftovers->after_jobs = false;
    if (std::this_thread::get_id() != leftovers->main_thread) leftovers->by_main_thread = false;
  }
  Leftovers* leftovers;
};

Task<> read_for_ever(Conn conn, InFrame) { (void)co_await conn.read(); }

Task<> sleep_for_ever(InFrame) { co_await sleep_for(1h); }

Task<> call_sleep_for_ever(Leftovers& leftovers, InFrame) {
  co_await sleep_for_ever(InFrame(leftovers));
}

Task<> yield_for_ever(InFrame) {
  for (;;) co_await yield();
}

Task<> run_job(std::function<void()> job, InFrame) { co_await blocking(std::move(job)); }

Task<> do_nothing(InFrame) { co_return; }

// ---- Others.

Task<> start_another(const Event& end) {
  if (!end) go(start_another(end));
  co_return;
}

}  // namespace

// ---- Work-conserving: a goroutine is ready and a worker is free, so it runs. None of these
// looks at a clock, except to give up.

TEST_CASE(
    "two-ready-in-one-poll: one poll makes two goroutines ready: two workers run them at once") {
  holds([] {
    for (int i = 0; i < 20; ++i) {
      run(
          2,
          [](Scheduler& scheduler) -> Task<> {
            Pair pair = unix_pair(scheduler);
            Meeting meeting;
            go(meet_after_read(pair.near, meeting, 0));
            go(meet_after_write(pair.near, meeting, 1));
            co_await blocking([&] {
              wait_until_idle(scheduler);
              pair.far.reset();  // one event, for the reader and the writer
              meeting.wait();
            });
            if (!meeting.both_met()) fail("one of them waited for the other to end");
            co_await until_alone(scheduler);
          },
          1h);
    }
  });
}

TEST_CASE(
    "two-added: one worker polls, one sleeps, a thread adds two goroutines: both run at once") {
  holds([] {
    for (int i = 0; i < 20; ++i) {
      run(
          2,
          [](Scheduler& scheduler) -> Task<> {
            Meeting meeting;
            co_await blocking([&] {
              wait_until_idle(scheduler);
              for (const std::size_t which : {0u, 1u}) scheduler.go(meet(meeting, which));
              meeting.wait();
            });
            if (!meeting.both_met()) fail("one of them waited for the other to end");
            co_await until_alone(scheduler);
          },
          1h);
    }
  });
}

TEST_CASE("watch: one goroutine computes for long: an idle worker serves the next event") {
  holds([] {
    // The pauses: the watch still runs, is about to stop, has stopped.
    for (const milliseconds pause : {0ms, 1ms, 2ms, 3ms, 5ms, 30ms, 300ms}) {
      CAPTURE(pause.count());
      for (int i = 0; i < 5; ++i) REQUIRE(second_is_served(1ms, pause, 5s));
    }
  });
}

TEST_CASE(
    "no-watch: one goroutine computes for long, and no watch runs: the next event has to wait") {
  holds([] {
    // The watch keeps the promise above. (Without it, a sleeper that was just woken may still
    // serve the event.)
    bool served = true;
    for (int i = 0; i < 10 && served; ++i) served = second_is_served(1h, 20ms, 300ms);
    CHECK_FALSE(served);
  });
}

TEST_CASE("work-before-block: work comes as a worker is about to block: it is done at once") {
  holds([] {
    for (const std::size_t workers : {1u, 2u}) {
      run(workers, [](Scheduler& scheduler) -> Task<> {
        std::atomic<int> done = 0;
        std::atomic<double> longest = 0;
        const auto work = [&]() -> Task<> {
          ++done;
          co_return;
        };
        co_await blocking([&] {
          std::mt19937 random(1);
          for (int i = 1; i <= 10'000; ++i) {
            const auto at = Clock::now() + microseconds(random() % 20);
            while (Clock::now() < at) {  // the worker is on its way back into the poll
            }
            const auto start = Clock::now();
            scheduler.go(work());
            while (done < i && Clock::now() < start + 5s) std::this_thread::yield();
            longest = std::max(longest.load(), ms_since(start));
            if (done < i) break;
          }
        });
        CHECK(longest < 2000);
        CHECK(done == 10'000);
      });
    }
  });
}

TEST_CASE(
    "timer-shortens-poll: a thread adds a timer that is due before all others: the poll is "
    "shortened") {
  struct Counts : Timer {
    void fire() noexcept override { ++fired; }
    std::atomic<int> fired = 0;
  };
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Counts far_off;
      Counts soon;
      CHECK(scheduler.add_timer(far_off, Clock::now() + 1h));
      co_await blocking([&] {
        for (int i = 1; i <= 200; ++i) {
          const auto delay = microseconds(i * 20);
          std::this_thread::sleep_for(delay);  // the worker waits in the poll, or is about to
          const auto start = Clock::now();
          CHECK(scheduler.add_timer(soon, start + delay));
          while (soon.fired < i && Clock::now() < start + 5s) std::this_thread::yield();
          const auto after = Clock::now() - start;
          if (after < delay || after >= 2s) fail("timer {} was fired at a wrong time", i);
        }
      });
      CHECK(far_off.fired == 0);
      CHECK(scheduler.add_timer(far_off, Clock::now()));  // before it is destroyed
      while (far_off.fired == 0) co_await yield();
    });
  });
}

// ---- Fair: counted in turns, on one worker.

TEST_CASE(
    "fair-turns: four goroutines always have bytes, four converse: none waits for two turns of "
    "another") {
  holds([] {
    constexpr std::size_t kFlooded = 4;
    constexpr std::size_t kAll = 8;
    Log log;
    read_size = 64;
    run(1, [&](Scheduler& scheduler) -> Task<> {
      std::vector<Pair> pairs;  // 0 to 3: kept full; 4, 5: a conversation each
      pairs.reserve(6);
      std::vector<Conn> far_ends;
      for (int i = 0; i < 6; ++i) pairs.push_back(unix_pair(scheduler));
      for (std::size_t i = kFlooded; i < 6; ++i)
        far_ends.emplace_back(scheduler.netpoller().open(std::move(pairs[i].far)));
      const auto read_on = [&](std::size_t self) -> Task<> {
        fill(pairs[self].far);
        for (int i = 0; i < 3000; ++i) {
          const Received in = co_await pairs[self].near.read();
          if (in.status != Io::ok) fail("not read");
          log.ran(self);
          if (i % 100 == 0) fill(pairs[self].far);
        }
      };
      const auto converse = [&](Conn& conn, std::size_t self, std::size_t other,
                                bool begins) -> Task<> {
        for (int i = 0; i < 500; ++i) {
          if (i > 0 || begins) {
            log.event_for(other);
            if (co_await conn.write_all("!") != Io::ok) fail("not written");
          }
          const Received in = co_await conn.read();
          if (in.bytes() != "!") fail("not read");
          log.ran(self);
        }
        if (!begins) (void)co_await conn.write_all("!");
      };
      for (std::size_t i = 0; i < kFlooded; ++i) go(read_on(i));
      for (std::size_t i = 0; i < 2; ++i) {
        go(converse(pairs[kFlooded + i].near, kFlooded + 2 * i, kFlooded + 2 * i + 1, true));
        go(converse(far_ends[i], kFlooded + 2 * i + 1, kFlooded + 2 * i, false));
      }
      co_await until_alone(scheduler);
    });
    read_size = kBuffer;
    CHECK(log.most_turns_before(true, kFlooded, kAll) <= 2);  // from its event to its turn
    CHECK(log.most_turns_before(false, 0, kFlooded) <= 2);    // between two turns
    CHECK(log.most_turns_before(true, kFlooded, kAll) > 0);   // they ran side by side
    CHECK(log.most_turns_before(false, 0, kFlooded) > 0);
  });
}

TEST_CASE(
    "fair-start: goroutines that start each other forever: timers fire, and connections are "
    "served") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      Event end;
      go(start_another(end));
      co_await sleep_for(1ms);
      pair.send("hello");
      CHECK((co_await pair.near.read()).bytes() == "hello");
      std::thread sender([&pair] {
        std::this_thread::sleep_for(20ms);
        pair.send("again");
      });
      CHECK((co_await pair.near.read()).bytes() == "again");
      end.set();
      sender.join();
      co_await until_alone(scheduler);
    });
  });
}

TEST_CASE(
    "fair-compute: goroutines compute and yield: a connection is served within 40 of their turns") {
  holds([] {
    // Counted in turns of a millisecond, two at a time on two workers: other load on the
    // machine delays the turns too.
    std::vector<int> delays;
    run(2, [&](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      std::atomic<bool> stop = false;
      std::atomic<int> turns = 0;
      std::atomic<int> sent = 0;
      const auto hog = [&]() -> Task<> {
        while (!stop) {
          const auto end = Clock::now() + 1ms;
          while (Clock::now() < end) {
          }
          ++turns;
          co_await yield();
        }
      };
      const auto reply = [&]() -> Task<> {
        for (;;) {
          const Received in = co_await pair.near.read();
          if (in.status != Io::ok) co_return;
          delays.push_back(turns - sent);
          if (co_await pair.near.write_all(in.bytes()) != Io::ok) co_return;
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
      co_await blocking([&] { client.join(); });  // no timer, which would need a poll
      pair.near.close();
      co_await until_alone(scheduler);
    });
    REQUIRE(delays.size() == 200);
    std::sort(delays.begin(), delays.end());
    const int p99 = delays[198];
    CAPTURE(p99);
    CHECK(p99 < 40);  // 20 ms
  });
}

TEST_CASE(
    "yield-one-turn: yield after two operations that did not wait: another goroutine has one "
    "turn") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      int turns = 0;
      Event end;
      const auto count = [&]() -> Task<> {
        while (!end) {
          ++turns;
          co_await yield();
        }
      };
      go(count());
      co_await yield();  // a new turn
      const int before = turns;
      CHECK(co_await pair.near.write_all("a") == Io::ok);
      CHECK(co_await pair.near.write_all("b") == Io::ok);
      CHECK(turns == before);
      co_await yield();
      CHECK(turns == before + 1);
      end.set();
      co_await until_alone(scheduler);
    });
  });
}

// ---- Goroutines that have not ended.

TEST_CASE(
    "main-ends-first: main ends before other goroutines: the scheduler's destructor destroys their "
    "frames") {
  holds([] {
    for (const std::size_t workers : {1u, 2u}) {
      CAPTURE(workers);
      Leftovers leftovers;
      Event main_ends;
      std::vector<Fd> far_ends;
      std::atomic<int> jobs = 0;
      std::size_t left = 0;
      const auto job = [&] {
        ++jobs;
        CHECK(main_ends.wait());
        std::this_thread::sleep_for(20ms);  // so that it ends after main
        leftovers.job_ended.set();
      };
      const auto main = [&](Scheduler& scheduler) -> Task<> {
        for (int i = 0; i < 3; ++i) {
          Pair pair = unix_pair(scheduler);
          far_ends.push_back(std::move(pair.far));
          go(read_for_ever(std::move(pair.near), InFrame(leftovers)));
          go(sleep_for_ever(InFrame(leftovers)));
          go(call_sleep_for_ever(leftovers, InFrame(leftovers)));
          go(yield_for_ever(InFrame(leftovers)));
          go(run_job(job, InFrame(leftovers)));  // the pool has one thread: two jobs wait
        }
        while (jobs < 1) co_await sleep_for(1ms);
        co_await yield();
        go(do_nothing(InFrame(leftovers)));  // most likely it stays in the queue
        left = scheduler.unfinished() - 1;
        main_ends.set();
      };
      {
        Scheduler scheduler(workers, 1);
        scheduler.run(main(scheduler));
        CHECK(scheduler.unfinished() >= 15);
        CHECK(leftovers.alive >= 15);
      }
      CHECK(left >= 15);  // do_nothing may have ended
      CHECK(leftovers.alive == 0);
      CHECK(jobs >= 1);
      CHECK(leftovers.job_ended);
      CHECK(leftovers.after_jobs);
      CHECK(leftovers.by_main_thread);
    }
  });
}

TEST_CASE(
    "run-no-worker: a worker that cannot be started: run throws, and the frame of main is "
    "destroyed") {
  holds([] {
    if (kSanitized) skip("a sanitizer needs more address space than the test allows");
    const Child child = in_child([] {
      const rlimit limit{1u << 30, 1u << 30};  // too small for the workers' stacks
      if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(1);
      Leftovers leftovers;
      try {
        Scheduler scheduler(100'000, 1);
        scheduler.run(do_nothing(InFrame(leftovers)));
        ::_exit(2);
      } catch (const StartupError& error) {
        log_line("{}", error.what());
      }
      ::_exit(leftovers.alive == 0 ? 0 : 3);
    });
    CHECK(WIFEXITED(child.status));
    CHECK(WEXITSTATUS(child.status) == 0);
    CHECK(child.errors.starts_with("cannot start 100000 workers: "));
  });
}

TEST_CASE("no-workers: a scheduler without workers: the constructor throws") {
  holds([] { CHECK_THROWS_AS(Scheduler(0, 1), std::invalid_argument); });
}

TEST_CASE("go-outside: go() outside of a goroutine: the program reports the bug and aborts") {
  holds([] {
    const Child child = in_child([] {
      Leftovers leftovers;
      go(do_nothing(InFrame(leftovers)));
    });
    CHECK(WIFSIGNALED(child.status));
    CHECK(WTERMSIG(child.status) == SIGABRT);
    CHECK(child.errors.starts_with("bug: go()"));
  });
}

// ---- Tasks.

TEST_CASE(
    "task-call: a task that another task calls: may wait, returns to its caller, and throws to "
    "it") {
  holds([] {
    run(1, [](Scheduler&) -> Task<> {
      int depth = 0;
      const std::function<Task<>(int)> descend = [&](int levels) -> Task<> {
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

TEST_CASE("task-value: a task that returns a value: its caller gets it, by move") {
  holds([] {
    run(1, [](Scheduler&) -> Task<> {
      const auto make = [](int value) -> Task<std::unique_ptr<int>> {
        co_await yield();
        co_return std::make_unique<int>(value);
      };
      const std::unique_ptr<int> made = co_await make(42);
      CHECK(*made == 42);
      const auto fail_to = []() -> Task<int> {
        co_await yield();
        throw std::runtime_error("as the test expects");
      };
      CHECK_THROWS_AS(co_await fail_to(), std::runtime_error);
    });
  });
}

TEST_CASE("task-stack: a million calls that end at once: the stack does not grow") {
  holds([] {
    run(1, [](Scheduler&) -> Task<> {
      int count = 0;
      const auto call = [&]() -> Task<> {
        ++count;
        co_return;
      };
      for (int i = 0; i < 1'000'000; ++i) co_await call();
      CHECK(count == 1'000'000);
    });
  });
}

TEST_CASE(
    "goroutine-throws: an exception that a goroutine does not catch: ends this goroutine and no "
    "other") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      go([]() -> Task<> {
        co_await yield();
        throw std::runtime_error("as the test expects");
      }());
      co_await until_alone(scheduler);
    });
  });
}

TEST_CASE("main-throws: an exception that main does not catch: run throws it") {
  holds([] {
    Scheduler scheduler(2, 1);
    const auto main = []() -> Task<> {
      co_await yield();
      throw std::runtime_error("as the test expects");
    };
    CHECK_THROWS_AS(scheduler.run(main()), std::runtime_error);
  });
}

TEST_CASE("three-steps: a request of three blocking steps: three lines in one goroutine") {
  holds([] {
    // The steps are those of 07's test of the same request.
    const auto look_up = [](std::string_view name) { return "user of " + std::string(name); };
    const auto fetch = [](const std::string& user) { return "page of " + user; };
    const auto store = [](const std::string& page) { return std::to_string(page.size()); };
    run(1, [&](Scheduler& scheduler) -> Task<> {
      const auto answer = [&](Conn& conn) -> Task<> {
        const Received name = co_await conn.read();
        const std::string user = co_await blocking([&] { return look_up(name.bytes()); });
        const std::string page = co_await blocking([&] { return fetch(user); });
        const std::string size = co_await blocking([&] { return store(page); });
        const std::string reply = size + ": " + page;
        (void)co_await conn.write_all(reply);
      };
      Pair pair = tcp_pair(scheduler);
      Conn far(scheduler.netpoller().open(std::move(pair.far)));
      go(answer(pair.near));
      CHECK(co_await far.write_all("x") == Io::ok);
      const Received reply = co_await far.read();
      CHECK(reply.bytes() == "17: page of user of x");
      co_await until_alone(scheduler);
    });
  });
}

TEST_CASE(
    "blocking: blocking: runs on another thread, returns what the function returns, throws "
    "likewise") {
  holds([] {
    run(1, [](Scheduler&) -> Task<> {
      const auto worker = std::this_thread::get_id();
      CHECK(co_await blocking([] { return std::this_thread::get_id(); }) != worker);
      CHECK(co_await blocking([] { return std::string("result"); }) == "result");
      bool thrown = false;
      try {
        co_await blocking([] { throw std::runtime_error("as the test expects"); });
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      CHECK(thrown);
    });
  });
}
