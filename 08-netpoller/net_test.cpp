// What Go's own tests ask of its network: net/timeout_test.go, net/net_test.go,
// internal/poll/fd_mutex_test.go, runtime/proc_test.go.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "goroutines_test.h"

extern std::atomic<std::size_t> allocations;  // by anybody in this program: allocations_test.cpp

namespace {

const Endpoint kAnyPort{.host = "127.0.0.1", .port = 0};

constexpr auto kPast = Clock::time_point::min();

Task echo_on(Conn& conn) {
  for (;;) {
    const Received in = co_await conn.read();
    if (in.status != Status::ok) co_return;
    if (co_await conn.write_all(in.bytes.view()) != Status::ok) co_return;
  }
}

Task read_into(Conn& conn, Status& status, Event& ended) {
  status = (co_await conn.read()).status;
  ended.set();
}

struct TwoReads {
  std::string bytes;
  Status last = Status::ok;
  milliseconds between{0};
  Event ended;
};

Task read_twice(Conn& conn, TwoReads& reads) {
  const Received first = co_await conn.read();
  const auto then = Clock::now();
  const Received second = co_await conn.read();
  reads.between = std::chrono::duration_cast<milliseconds>(Clock::now() - then);
  reads.bytes = std::string(first.bytes.view()) + std::string(second.bytes.view());
  reads.last = second.status;
  reads.ended.set();
}

}  // namespace

TEST_CASE("twenty thousand messages go to and fro and none allocates") {
  holds([] {
    if (allocations == 0) skip("operator new is not ours here");
    for (const std::size_t workers : {1u, 2u}) {
      run(workers, [workers](Scheduler& scheduler) -> Task {
        Pair pair(scheduler);
        Conn far(scheduler.netpoller().open(std::move(pair.far)));
        go(echo_on(far));
        std::size_t before = 0;
        for (int i = 0; i < 20'100; ++i) {
          if (i == 100) before = allocations;
          if (co_await pair.near->write_all("ping") != Status::ok) fail("not written");
          const Received in = co_await pair.near->read();
          if (in.bytes.view() != "ping") fail("not read");
        }
        const std::size_t allocated = allocations - before;
        // A worker that is new to this may have no buffer yet.
        CHECK(allocated <= 32 * (workers - 1));
        far.close();
        co_await sleep_for(1ms);
        while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
      });
    }
  });
}

namespace {

Task start_another(const Event& end) {
  if (!end) go(start_another(end));
  co_return;
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
      CHECK((co_await pair.near->read()).bytes.view() == "hello");
      std::thread sender([&pair] {
        std::this_thread::sleep_for(20ms);
        pair.send("again");
      });
      pair.near->set_read_deadline(Clock::now() + 500ms);  // before it would be doubted
      CHECK((co_await pair.near->read()).bytes.view() == "again");
      end.set();
      sender.join();
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("what comes after a read that took all is read at once") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      TwoReads reads;
      go(read_twice(*pair.near, reads));
      pair.send("one");
      co_await sleep_for(10ms);  // it is parked again, and has not tried
      pair.send("two");
      while (!reads.ended) co_await sleep_for(1ms);
      CHECK(reads.bytes == "onetwo");
      CHECK(reads.between < 300ms);  // and not when it is doubted, a second later
    });
  });
}

TEST_CASE("what did not fit into one read is read at once") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      TwoReads reads;
      go(read_twice(*pair.near, reads));
      co_await sleep_for(10ms);  // it is parked, and will hear of all bytes once
      pair.send(std::string(20'000, 'x'));
      while (!reads.ended) co_await sleep_for(1ms);
      CHECK(reads.bytes.size() == 20'000);
      CHECK(reads.between < 300ms);
    });
  });
}

TEST_CASE("the end behind the last bytes is found at once") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      TwoReads reads;
      go(read_twice(*pair.near, reads));
      co_await sleep_for(10ms);  // it is parked; bytes and end are one event
      pair.send("bye");
      ::shutdown(pair.far.get(), SHUT_WR);
      while (!reads.ended) co_await sleep_for(1ms);
      CHECK(reads.bytes == "bye");
      CHECK(reads.last == Status::end);
      CHECK(reads.between < 300ms);
    });
  });
}

TEST_CASE("what a read that was cut short has left behind is found") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      bool found_out = false;
      for (int i = 0; i < 3; ++i) {
        TwoReads reads;
        go(read_twice(*pair.near, reads));
        co_await sleep_for(10ms);
        // A read stops before an urgent byte, and the next one goes on after it: tcp(7).
        pair.send("before");
        if (::send(pair.far.get(), "!", 1, MSG_OOB) != 1) fail("not sent");
        pair.send("after");
        while (!reads.ended) co_await sleep_for(1ms);
        CHECK(reads.bytes == "beforeafter");
        // Who was found out is not trusted again. (If "after" comes late, it is news.)
        if (found_out) CHECK(reads.between < 500ms);
        found_out = found_out || reads.between > 500ms;
      }
    });
  });
}

TEST_CASE("a deadline that has passed fails a read although there is something to read") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      pair.send("hello");
      pair.near->set_read_deadline(kPast);
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      pair.near->set_read_deadline(std::nullopt);
      const Received in = co_await pair.near->read();
      CHECK(in.bytes.view() == "hello");
      pair.near->set_write_deadline(kPast);
      CHECK(co_await pair.near->write_all("hello") == Status::timed_out);
    });
  });
}

TEST_CASE("a deadline that has passed fails an accept although somebody waits") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      Listener listener(scheduler, kAnyPort);
      Client client(local_address(listener.socket()));
      listener.set_deadline(kPast);
      CHECK((co_await listener.accept()).status == Status::timed_out);
      listener.set_deadline(std::nullopt);
      CHECK((co_await listener.accept()).status == Status::ok);
    });
  });
}

TEST_CASE("a deadline that was taken back does not end a read") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      pair.near->set_read_deadline(kPast);
      pair.near->set_read_deadline(std::nullopt);
      pair.near->set_read_deadline(Clock::now() + 20ms);
      pair.near->set_read_deadline(std::nullopt);
      Status status = Status::closed;
      Event ended;
      go(read_into(*pair.near, status, ended));
      co_await sleep_for(60ms);
      CHECK_FALSE(ended);
      pair.send("!");
      while (!ended) co_await sleep_for(1ms);
      CHECK(status == Status::ok);
    });
  });
}

TEST_CASE("a deadline is never early and not much late") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      for (int i = 0; i < 20; ++i) {
        const auto start = Clock::now();
        pair.near->set_read_deadline(start + 20ms);
        CHECK((co_await pair.near->read()).status == Status::timed_out);
        CHECK(ms_since(start) >= 20);
        CHECK(ms_since(start) < 1000);
      }
    });
  });
}

TEST_CASE("a deadline that is put off is kept and one that is brought forward too") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      const auto start = Clock::now();
      pair.near->set_read_deadline(start + 20ms);
      pair.near->set_read_deadline(start + 80ms);
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      CHECK(ms_since(start) >= 80);
      pair.near->set_read_deadline(Clock::now() + 1h);
      pair.near->set_read_deadline(Clock::now() + 20ms);
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      CHECK(ms_since(start) < 2000);
    });
  });
}

TEST_CASE("of two deadlines each ends its own direction") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      const auto start = Clock::now();
      pair.near->set_read_deadline(start + 600ms);
      pair.near->set_write_deadline(start + 20ms);
      CHECK(co_await pair.near->write_all(std::string(16 << 20, 'x')) == Status::timed_out);
      CHECK(ms_since(start) < 600);
      CHECK((co_await pair.near->read()).status == Status::timed_out);
      CHECK(ms_since(start) >= 600);
    });
  });
}

TEST_CASE("deadlines that another thread keeps changing cost no byte") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      Pair pair(scheduler);
      Conn far(scheduler.netpoller().open(std::move(pair.far)));
      go(echo_on(far));
      std::atomic<bool> stop = false;
      std::thread changer([&] {  // some microseconds ahead, none, or over already
        std::mt19937 random(1);
        while (!stop) {
          const auto ahead = std::chrono::microseconds(random() % 200);
          if (random() % 4 == 0) pair.near->set_read_deadline(std::nullopt);
          if (random() % 4 != 0) pair.near->set_read_deadline(Clock::now() + ahead);
        }
      });
      std::size_t timeouts = 0;
      for (int i = 0; i < 3000; ++i) {
        const std::string sent(1, static_cast<char>(i));
        if (co_await pair.near->write_all(sent) != Status::ok) fail("not written");
        for (;;) {
          const Received in = co_await pair.near->read();
          if (in.status == Status::timed_out) {
            ++timeouts;
            co_await yield();
            continue;
          }
          CHECK(in.bytes.view() == sent);
          break;
        }
      }
      stop = true;
      changer.join();
      CHECK(timeouts > 0);
      far.close();
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("a write whose deadline passed because nobody looked is finished") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      std::array<int, 2> ends{};
      if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) fail("socketpair");
      Fd ours(ends[0]);
      const Fd far(ends[1]);
      set_non_blocking(ours);
      set_non_blocking(far);
      const int size = 64 * 1024;
      if (::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &size, sizeof size) != 0) fail("sndbuf");
      Conn near(scheduler.netpoller().open(std::move(ours)));
      near.set_write_deadline(Clock::now() + 50ms);
      Status written = Status::closed;
      Event ended;
      const auto write_more_than_fits = [](Conn& conn, Status& status, Event& done) -> Task {
        const std::string data(160 * 1024, 'x');
        status = co_await conn.write_all(data);
        done.set();
      };
      go(write_more_than_fits(near, written, ended));
      co_await sleep_for(10ms);
      CHECK_FALSE(ended);
      // Keeps the only worker until the deadline has passed, and empties the socket meanwhile.
      std::array<char, 16 * 1024> bytes;
      const auto start = Clock::now();
      while (ms_since(start) < 100) (void)read_some(far, bytes);
      while (!ended) co_await sleep_for(1ms);
      CHECK(written == Status::ok);
    });
  });
}

TEST_CASE("close releases a parked read and a parked write") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      Status read = Status::ok;
      Status written = Status::ok;
      Event ended;
      Event written_ended;
      go(read_into(*pair.near, read, ended));
      const auto write_much = [](Conn& conn, Status& status, Event& done) -> Task {
        status = co_await conn.write_all(std::string(16 << 20, 'x'));
        done.set();
      };
      go(write_much(*pair.near, written, written_ended));
      co_await sleep_for(20ms);
      CHECK_FALSE(ended);
      CHECK_FALSE(written_ended);
      std::thread([&] { pair.near->close(); }).join();
      while (!ended || !written_ended) co_await sleep_for(1ms);
      CHECK(read == Status::closed);
      CHECK(written == Status::closed);
      CHECK((co_await pair.near->read()).status == Status::closed);
    });
  });
}

TEST_CASE("ten acceptors on one listener take ten clients and close releases all") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      Listener listener(scheduler, kAnyPort);
      std::atomic<int> accepted = 0;
      std::atomic<int> released = 0;
      const auto accept_all = [&]() -> Task {
        for (;;) {
          const AcceptResult next = co_await listener.accept();
          if (next.status != Status::ok) break;
          ++accepted;
        }
        ++released;
      };
      for (int i = 0; i < 10; ++i) go(accept_all());
      co_await sleep_for(5ms);
      std::vector<std::unique_ptr<Client>> clients;
      clients.reserve(10);
      for (int i = 0; i < 10; ++i)
        clients.push_back(std::make_unique<Client>(local_address(listener.socket())));
      while (accepted < 10) co_await sleep_for(1ms);
      CHECK(released == 0);
      listener.close();
      while (released < 10) co_await sleep_for(1ms);
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("two readers of one connection get every byte once") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      std::atomic<std::size_t> received = 0;
      std::atomic<int> left = 2;
      const auto read_all = [&]() -> Task {
        for (;;) {
          const Received in = co_await pair.near->read();
          if (in.status != Status::ok) break;
          received += in.bytes.view().size();
        }
        --left;
      };
      go(read_all());
      go(read_all());
      for (int i = 0; i < 1000; ++i) {
        pair.send("x");
        if (i % 50 == 0) co_await yield();
      }
      while (received < 1000) co_await sleep_for(1ms);
      pair.near->close();
      while (left > 0) co_await sleep_for(1ms);
      CHECK(received == 1000);
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
    });
  });
}

TEST_CASE("a timer that is due sooner than all others shortens the poll") {
  struct Never : Timer {
    Clock::time_point fire() override { return kNotSet; }
  };
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      Never far_off;
      Event fired;
      struct Soon : Timer {
        explicit Soon(Event& event) : event_(event) {}
        Clock::time_point fire() override {
          event_.set();
          return kNotSet;
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
          if (co_await pair.near->write_all(in.bytes.view()) != Status::ok) co_return;
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
      while (!stop) co_await sleep_for(5ms);
      client.join();
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
    run(2, [](Scheduler& scheduler) -> Task {
      // Both workers have nothing to do: one polls, one sleeps. The poll returns one
      // goroutine, which takes its time; nobody polls now, unless the sleeper sees it.
      const Pair first(scheduler);
      const Pair second(scheduler);
      Event second_has_read;
      const auto compute = [&]() -> Task {
        (void)co_await first.near->read();
        second.send("!");
        const auto start = Clock::now();
        while (!second_has_read && ms_since(start) < 2000) {
        }
        CHECK(second_has_read);
      };
      Status status = Status::closed;
      go(compute());
      go(read_into(*second.near, status, second_has_read));
      co_await blocking([&] {
        std::this_thread::sleep_for(30ms);
        first.send("!");
        CHECK(second_has_read.wait());
      });
      while (scheduler.unfinished() > 1) co_await sleep_for(1ms);
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
        const std::string user = co_await blocking([&] { return look_up(name.bytes.view()); });
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
      CHECK(reply.bytes.view() == "17: page of user of x");
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
