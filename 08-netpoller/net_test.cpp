// What Go's own tests ask of its network: net/timeout_test.go, net/net_test.go,
// internal/poll/fd_mutex_test.go.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "goroutines_test.h"

extern std::atomic<std::size_t> allocations;  // by anybody in this program: allocations_test.cpp
extern std::atomic<bool> no_memory;           // for anybody

namespace {

const Endpoint kAnyPort{.host = "127.0.0.1", .port = 0};

constexpr auto kPast = Clock::time_point::min();

Task echo_on(Conn& conn) {
  for (;;) {
    const Received in = co_await conn.read();
    if (in.status != Status::ok) co_return;
    if (co_await conn.write_all(in.bytes()) != Status::ok) co_return;
  }
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
  reads.bytes = std::string(first.bytes()) + std::string(second.bytes());
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
          if (in.bytes() != "ping") fail("not read");
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

TEST_CASE("an urgent byte cuts a read short and nobody waits for the rest") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      for (int i = 0; i < 3; ++i) {
        TwoReads reads;
        go(read_twice(*pair.near, reads));
        co_await sleep_for(10ms);  // it is parked
        // A read stops before an urgent byte, and the next one goes on with it: tcp(7).
        pair.send("before");
        if (::send(pair.far.get(), "!", 1, MSG_OOB) != 1) fail("not sent");
        pair.send("after");
        while (!reads.ended) co_await sleep_for(1ms);
        CHECK(reads.bytes == "before!after");
        CHECK(reads.between < 300ms);
      }
    });
  });
}

TEST_CASE("a read without memory for its buffer leaves what has come to the next") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
    if (!Netpoller::kShortReadsEnd) skip("here each read is tried first, whatever was left");
    run(1, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      pair.send("first");
      const Received kept = co_await pair.near->read();  // and with it the worker's only buffer
      const auto send_soon = [](const Pair& to) -> Task {
        co_await sleep_for(10ms);  // until the next read has parked
        no_memory = true;
        to.send("second");
      };
      go(send_soon(pair));
      pair.near->set_read_deadline(Clock::now() + 500ms);  // it does not wait for more
      const Status failed = (co_await pair.near->read()).status;
      no_memory = false;
      CHECK(failed == Status::out_of_resources);
      CHECK((co_await pair.near->read()).bytes() == "second");
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
      pair.near->set_read_deadline(kNever);
      const Received in = co_await pair.near->read();
      CHECK(in.bytes() == "hello");
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
      listener.set_deadline(kNever);
      CHECK((co_await listener.accept()).status == Status::ok);
    });
  });
}

TEST_CASE("a deadline that was taken back does not end a read") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task {
      const Pair pair(scheduler);
      pair.near->set_read_deadline(kPast);
      pair.near->set_read_deadline(kNever);
      pair.near->set_read_deadline(Clock::now() + 20ms);
      pair.near->set_read_deadline(kNever);
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
      const std::string much(16 << 20, 'x');
      const auto start = Clock::now();
      pair.near->set_read_deadline(start + 600ms);
      pair.near->set_write_deadline(start + 20ms);
      CHECK(co_await pair.near->write_all(much) == Status::timed_out);
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
          if (random() % 4 == 0) pair.near->set_read_deadline(kNever);
          if (random() % 4 != 0) pair.near->set_read_deadline(Clock::now() + ahead);
        }
      });
      std::size_t timeouts = 0;
      // Longer, if the other thread has not come to it yet.
      const auto until = Clock::now() + patience;
      for (int i = 0; i < 3000 || (timeouts == 0 && Clock::now() < until); ++i) {
        const std::string sent(1, static_cast<char>(i));
        if (co_await pair.near->write_all(sent) != Status::ok) fail("not written");
        for (;;) {
          const Received in = co_await pair.near->read();
          if (in.status == Status::timed_out) {
            ++timeouts;
            co_await yield();
            continue;
          }
          CHECK(in.bytes() == sent);
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

TEST_CASE("a read whose bytes came in time but whose deadline passed unseen gets them") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task {
      const NumberedPair pair(scheduler);
      const auto deadline = Clock::now() + 500ms;
      pair.near->set_read_deadline(deadline);
      Status read = Status::closed;
      Event ended;
      go(read_into(*pair.near, read, ended));
      co_await sleep_for(10ms);
      CHECK_FALSE(ended);
      if (write_some(pair.far, "in time").status != Io::ok) fail("not sent");
      std::this_thread::sleep_until(deadline + 1ms);  // keeps the only worker
      while (!ended) co_await sleep_for(1ms);
      CHECK(read == Status::ok);
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
          received += in.bytes().size();
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
