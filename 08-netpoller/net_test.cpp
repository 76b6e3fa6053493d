// What a connection promises. Many cases are those of Go's own tests: net/timeout_test.go,
// net/net_test.go, internal/poll/fd_mutex_test.go.
#include <fcntl.h>

#include <algorithm>
#include <random>
#include <vector>

#include "common/testing/holds.h"
#include "goroutines_test.h"

extern std::atomic<std::size_t> allocations;  // allocations_test.cpp
extern std::atomic<bool> no_memory;

std::size_t read_size = kBuffer;  // what a read asks for: net.h

namespace {

const Endpoint kAnyPort{.host = "127.0.0.1", .port = 0};

struct ShortReads {
  explicit ShortReads(std::size_t size) { read_size = size; }
  ~ShortReads() { read_size = kBuffer; }
  ShortReads(const ShortReads&) = delete;
  ShortReads& operator=(const ShortReads&) = delete;
};

Task<> echo_on(Conn& conn) {
  for (;;) {
    const Received in = co_await conn.read();
    if (in.status != Io::ok) co_return;
    if (co_await conn.write_all(in.bytes()) != Io::ok) co_return;
  }
}

// Reads until it has `size` bytes, or a read is not ok.
Task<std::string> read_bytes(Conn& conn, std::size_t size) {
  std::string bytes;
  while (bytes.size() < size) {
    const Received in = co_await conn.read();
    if (in.status != Io::ok) break;
    bytes += in.bytes();
  }
  co_return bytes;
}

// Whether a read had to wait until its deadline passed. (Its last call may still get bytes, so its
// status does not tell.)
bool waited(const Conn& conn) { return conn.desc->expired(kRead); }

struct TwoReads {
  std::string bytes;
  bool waited = false;
  Io last = Io::ok;
  Event ended;
};

Task<> read_twice(Conn& conn, TwoReads& reads) {
  const Received first = co_await conn.read();
  conn.set_read_deadline(Clock::now() + 2s);
  const Received second = co_await conn.read();
  reads.waited = waited(conn);
  conn.set_read_deadline(kNever);
  reads.bytes = std::string(first.bytes()) + std::string(second.bytes());
  reads.last = second.status;
  reads.ended.set();
}

std::string pattern(std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>('a' + i % 23);
  return bytes;
}

// Sizes around multiples of a read's size.
std::vector<std::size_t> sizes_around(std::size_t size) {
  std::vector<std::size_t> sizes;
  for (std::size_t times = 1; times <= 3; ++times) {
    for (const std::size_t one : {times * size - 1, times * size, times * size + 1})
      if (one > 0) sizes.push_back(one);
  }
  return sizes;
}

}  // namespace

// ---- Bytes.

TEST_CASE(
    "no-allocation: 20,000 messages between two goroutines: no allocation in the steady state") {
  holds([] {
    if (allocations == 0) skip("operator new is not ours here");
    for (const std::size_t workers : {1u, 2u}) {
      run(workers, [workers](Scheduler& scheduler) -> Task<> {
        Pair pair = tcp_pair(scheduler);
        Conn far(scheduler.netpoller().open(std::move(pair.far)));
        go(echo_on(far));
        std::size_t before = 0;
        for (int i = 0; i < 20'100; ++i) {
          if (i == 100) before = allocations;
          if (co_await pair.near.write_all("ping") != Io::ok) fail("not written");
          const Received in = co_await pair.near.read();
          if (in.bytes() != "ping") fail("not read");
        }
        const std::size_t allocated = allocations - before;
        CHECK(allocated <= 32 * (workers - 1));  // for a second worker's buffers
        far.close();
        co_await until_alone(scheduler);
      });
    }
  });
}

TEST_CASE(
    "read-after-drained: bytes that come after a read took everything: the next read gets them") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      TwoReads reads;
      go(read_twice(pair.near, reads));
      pair.send("one");
      co_await sleep_for(10ms);  // most likely it has parked again, without a system call
      pair.send("two");
      co_await until(reads.ended);
      CHECK(reads.bytes == "onetwo");
      CHECK_FALSE(reads.waited);
    });
  });
}

TEST_CASE(
    "read-rest: more bytes than one read takes: the next read gets the rest without an event") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      TwoReads reads;
      go(read_twice(pair.near, reads));
      co_await sleep_for(10ms);  // most likely it has parked: all bytes are one event
      pair.send(std::string(20'000, 'x'));
      co_await until(reads.ended);
      CHECK(reads.bytes.size() == 20'000);
      CHECK_FALSE(reads.waited);
    });
  });
}

TEST_CASE(
    "read-end-behind-bytes: a half-close behind the last bytes: the next read ends without another "
    "event") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      TwoReads reads;
      go(read_twice(pair.near, reads));
      co_await sleep_for(10ms);  // most likely it has parked: bytes and end are one event
      pair.send("bye");
      ::shutdown(pair.far.get(), SHUT_WR);
      co_await until(reads.ended);
      CHECK(reads.bytes == "bye");
      CHECK(reads.last == Io::end);
      CHECK_FALSE(reads.waited);
    });
  });
}

TEST_CASE(
    "read-urgent: an urgent byte ends a read early: the next read gets the rest without an event") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      for (int i = 0; i < 3; ++i) {
        TwoReads reads;
        go(read_twice(pair.near, reads));
        co_await sleep_for(10ms);  // most likely it has parked
        pair.send("before");
        if (::send(pair.far.get(), "!", 1, MSG_OOB) != 1) fail("not sent");
        pair.send("after");
        co_await until(reads.ended);
        CHECK(reads.bytes == "before!after");
        CHECK_FALSE(reads.waited);
      }
    });
  });
}

TEST_CASE(
    "short-reads: reads of 1, 7 and 4096 bytes: every message arrives complete, without another "
    "event") {
  holds([] {
    for (const std::size_t size : {1u, 7u, 4096u}) {
      const ShortReads short_reads(size);
      run(1, [&](Scheduler& scheduler) -> Task<> {
        Pair pair = tcp_pair(scheduler);
        std::mt19937 random(1);
        auto sizes = sizes_around(size);
        for (int i = 0; i < 100; ++i) sizes.push_back(1 + random() % (3 * size));
        for (const std::size_t message : sizes) {
          CAPTURE(size);
          CAPTURE(message);
          const std::string sent = pattern(message);
          pair.near.set_read_deadline(Clock::now() + 2s);  // if it waits for another event
          pair.send(sent);
          CHECK(co_await read_bytes(pair.near, message) == sent);
          CHECK_FALSE(waited(pair.near));
        }
      });
    }
  });
}

TEST_CASE(
    "short-reads-half-close: reads of 1, 7 and 4096 bytes, a half-close behind the last byte: "
    "bytes, then the end") {
  holds([] {
    for (const std::size_t size : {1u, 7u, 4096u}) {
      const ShortReads short_reads(size);
      run(1, [&](Scheduler& scheduler) -> Task<> {
        for (const std::size_t message : sizes_around(size)) {
          CAPTURE(size);
          CAPTURE(message);
          Pair pair = tcp_pair(scheduler);
          const std::string sent = pattern(message);
          pair.near.set_read_deadline(Clock::now() + 2s);
          pair.send(sent);
          ::shutdown(pair.far.get(), SHUT_WR);
          CHECK(co_await read_bytes(pair.near, message) == sent);
          CHECK((co_await pair.near.read()).status == Io::end);
          CHECK_FALSE(waited(pair.near));
        }
      });
    }
  });
}

TEST_CASE(
    "short-reads-urgent: reads of 1, 7 and 4096 bytes, an urgent byte in the middle: all bytes in "
    "order") {
  holds([] {
    for (const std::size_t size : {1u, 7u, 4096u}) {
      const ShortReads short_reads(size);
      run(1, [&](Scheduler& scheduler) -> Task<> {
        for (const std::size_t message : sizes_around(size)) {
          CAPTURE(size);
          CAPTURE(message);
          Pair pair = tcp_pair(scheduler);
          const std::string sent = pattern(message);
          pair.near.set_read_deadline(Clock::now() + 2s);
          pair.send(sent);
          if (::send(pair.far.get(), "!", 1, MSG_OOB) != 1) fail("not sent");
          pair.send(sent);
          CHECK(co_await read_bytes(pair.near, 2 * message + 1) ==
                sent + "!" + sent);  // NOLINT(performance-inefficient-string-concatenation)
          CHECK_FALSE(waited(pair.near));
        }
      });
    }
  });
}

TEST_CASE("read-no-memory: a read without memory for its buffer: the next read gets the bytes") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's here");
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      pair.send("first");
      const Received kept = co_await pair.near.read();  // keeps the worker's only buffer
      const auto send_soon = [](const Pair& to) -> Task<> {
        no_memory = true;
        to.send("second");
        co_return;
      };
      go(send_soon(pair));  // runs when the next read has parked
      pair.near.set_read_deadline(Clock::now() + 2s);
      const Io failed = (co_await pair.near.read()).status;
      no_memory = false;
      CHECK(failed == Io::out_of_resources);
      CHECK((co_await pair.near.read()).bytes() == "second");
      CHECK_FALSE(waited(pair.near));
    });
  });
}

// ---- Deadlines.

TEST_CASE("deadline-past-read: a deadline in the past: a read fails although bytes are ready") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      pair.send("hello");
      pair.near.set_read_deadline(kPast);
      CHECK((co_await pair.near.read()).status == kTimedOut);
      CHECK((co_await pair.near.read()).status == kTimedOut);
      pair.near.set_read_deadline(kNever);
      const Received in = co_await pair.near.read();
      CHECK(in.bytes() == "hello");
      pair.near.set_write_deadline(kPast);
      CHECK(co_await pair.near.write_all("hello") == kTimedOut);
    });
  });
}

TEST_CASE("deadline-past-accept: a deadline in the past: an accept fails although a client waits") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Listener listener(scheduler, kAnyPort);
      const Client client(local_address(listener.desc->fd()));
      listener.set_read_deadline(kPast);
      CHECK((co_await listener.accept()).status == kTimedOut);
      listener.set_read_deadline(kNever);
      CHECK((co_await listener.accept()).status == Io::ok);
    });
  });
}

TEST_CASE(
    "accept-no-wait: an accept that does not wait: takes a client from the backlog, or ends") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Listener listener(scheduler, kAnyPort);
      CHECK((co_await listener.accept(false)).status == Io::end);
      const Client client(local_address(listener.desc->fd()));
      CHECK((co_await listener.accept(false)).status == Io::ok);
      CHECK((co_await listener.accept(false)).status == Io::end);
    });
  });
}

TEST_CASE("deadline-taken-back: a deadline that is taken back before it passes: the read goes on") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      pair.near.set_read_deadline(kPast);
      pair.near.set_read_deadline(kNever);
      pair.near.set_read_deadline(Clock::now() + 1h);
      pair.near.set_read_deadline(Clock::now() + 1min);
      pair.near.set_read_deadline(Clock::now() + 1h);
      Io status = kClosed;
      Event ended;
      go(read_into(pair.near, status, ended));
      pair.near.set_read_deadline(Clock::now() + 20ms);
      pair.near.set_read_deadline(kNever);
      co_await sleep_for(60ms);  // the timer fires, and finds no deadline
      pair.send("!");
      co_await until(ended);
      CHECK(status == Io::ok);
    });
  });
}

TEST_CASE("deadline-on-time: a read with a deadline: never ends early, and not much late") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      for (int i = 0; i < 20; ++i) {
        const auto start = Clock::now();
        pair.near.set_read_deadline(start + 20ms);
        CHECK((co_await pair.near.read()).status == kTimedOut);
        CHECK(ms_since(start) >= 20);
        CHECK(ms_since(start) < 1000);
      }
    });
  });
}

TEST_CASE(
    "deadline-moved: a deadline that is put off or brought forward: the read ends at the new one") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      const auto start = Clock::now();
      pair.near.set_read_deadline(start + 20ms);
      pair.near.set_read_deadline(start + 80ms);
      CHECK((co_await pair.near.read()).status == kTimedOut);
      CHECK(ms_since(start) >= 80);
      pair.near.set_read_deadline(Clock::now() + 1h);
      pair.near.set_read_deadline(Clock::now() + 20ms);
      CHECK((co_await pair.near.read()).status == kTimedOut);
      CHECK(ms_since(start) < 2000);
    });
  });
}

TEST_CASE(
    "deadline-each-way: different deadlines for reads and writes: each ends its own direction") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      const std::string much(16 << 20, 'x');
      const auto start = Clock::now();
      pair.near.set_read_deadline(start + 600ms);
      pair.near.set_write_deadline(start + 20ms);
      CHECK(co_await pair.near.write_all(much) == kTimedOut);
      CHECK(ms_since(start) < 600);
      CHECK((co_await pair.near.read()).status == kTimedOut);
      CHECK(ms_since(start) >= 600);
    });
  });
}

TEST_CASE(
    "deadline-changing: another thread keeps changing the deadline: no byte is lost, no read stays "
    "parked") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      Conn far(scheduler.netpoller().open(std::move(pair.far)));
      go(echo_on(far));
      std::atomic<bool> stop = false;
      std::thread changer([&] {  // microseconds ahead, in the past, or none
        std::mt19937 random(1);
        while (!stop) {
          const auto ahead = microseconds(random() % 200);
          if (random() % 4 == 0) pair.near.set_read_deadline(kNever);
          if (random() % 4 == 0) pair.near.set_read_deadline(kPast);
          if (random() % 4 != 0) pair.near.set_read_deadline(Clock::now() + ahead);
          if (random() % 4 == 0) std::this_thread::sleep_for(ahead);
        }
      });
      std::size_t timeouts = 0;
      const auto end = Clock::now() + patience / 2;
      for (int i = 0; i < 10'000 || (timeouts == 0 && Clock::now() < end); ++i) {
        const std::string sent(1, static_cast<char>(i));
        if (co_await pair.near.write_all(sent) != Io::ok) fail("not written");
        for (;;) {
          const Received in = co_await pair.near.read();
          if (in.status == kTimedOut) {
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
      co_await until_alone(scheduler);
    });
  });
}

TEST_CASE(
    "deadline-flapping: a deadline that passes and is taken back at once: a parked read stays "
    "usable") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      Event over;
      std::thread changer([&] {
        while (!over) {
          pair.near.set_read_deadline(kPast);
          pair.near.set_read_deadline(kNever);
        }
      });
      std::thread sender([&] {  // after each read has begun, more or less
        std::mt19937 random(1);
        for (int i = 0; i < 5000; ++i) {
          pair.send("!");
          if (random() % 2 == 0) std::this_thread::sleep_for(microseconds(random() % 50));
        }
      });
      std::size_t received = 0;
      while (received < 5000) {
        const Received in = co_await pair.near.read();
        if (in.status != Io::ok && in.status != kTimedOut) fail("the read failed");
        received += in.size;
      }
      over.set();
      sender.join();
      changer.join();
      CHECK(received == 5000);
    });
  });
}

TEST_CASE(
    "deadline-race: bytes come as the deadline passes: a read that fails leaves them to the next "
    "one") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      std::atomic<int> round = 0;
      std::atomic<bool> over = false;
      std::thread other([&] {
        for (int i = 1;; ++i) {
          while (round < i && !over) std::this_thread::yield();
          if (over) return;
          if (i % 2 == 0) pair.send("!");
          pair.near.set_read_deadline(kPast);
          if (i % 2 != 0) pair.send("!");
        }
      });
      int late = 0;
      const auto end = Clock::now() + 3s;  // beside busy processes a round takes milliseconds
      for (int i = 1; i <= 3000 && Clock::now() < end; ++i) {
        round = i;
        if ((co_await pair.near.read()).status == Io::ok) {
          while (!pair.near.desc->expired(kRead)) co_await yield();  // the round is over then
          pair.near.set_read_deadline(kNever);
          continue;
        }
        ++late;
        pair.near.set_read_deadline(Clock::now() + 2s);
        if ((co_await pair.near.read()).status != Io::ok) fail("round {}: no byte", i);
        if (waited(pair.near)) fail("round {}: the read did not find the byte at once", i);
        pair.near.set_read_deadline(kNever);
      }
      over = true;
      other.join();
      CHECK(late > 0);
    });
  });
}

TEST_CASE(
    "deadline-no-worker: bytes came before the deadline, and no worker was free: the read gets "
    "them") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      const auto deadline = Clock::now() + 500ms;
      pair.near.set_read_deadline(deadline);
      Io read = kClosed;
      Event ended;
      go(read_into(pair.near, read, ended));
      co_await sleep_for(10ms);
      CHECK_FALSE(ended);
      pair.send("in time");
      std::this_thread::sleep_until(deadline + 1ms);  // blocks the only worker
      co_await until(ended);
      CHECK(read == Io::ok);
    });
  });
}

TEST_CASE("deadline-room: a parked write got room before its deadline passed: it is finished") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      const std::size_t fits = fill(pair.far);  // in each direction
      Io status = kClosed;
      Event ended;
      go(write_bytes(pair.near, fits + fits / 2, status, ended));
      co_await yield();  // until it has parked
      std::array<char, 16 * 1024> bytes;
      while (read_some(pair.far, bytes).status == Io::ok) {
      }
      CHECK_FALSE(ended);
      pair.near.set_write_deadline(kPast);
      co_await until(ended);
      CHECK(status == Io::ok);
    });
  });
}

// ---- Closing.

TEST_CASE(
    "close-ends-operations: close: a parked read, write and accept end, and those that come "
    "later") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Pair pair = tcp_pair(scheduler);
      Listener listener(scheduler, kAnyPort);
      Io read = Io::ok;
      Io written = Io::ok;
      Io accepted = Io::ok;
      Event read_ended;
      Event write_ended;
      Event accept_ended;
      const auto accept_one = [&]() -> Task<> {
        accepted = (co_await listener.accept()).status;
        accept_ended.set();
      };
      go(read_into(pair.near, read, read_ended));
      go(write_bytes(pair.near, 16 << 20, written, write_ended));
      go(accept_one());
      co_await sleep_for(20ms);
      CHECK_FALSE(read_ended);
      CHECK_FALSE(write_ended);
      CHECK_FALSE(accept_ended);
      std::thread([&] {
        pair.near.close();
        listener.close();
      }).join();
      for (const Event* ended : {&read_ended, &write_ended, &accept_ended}) co_await until(*ended);
      CHECK(read == kClosed);
      CHECK(written == kClosed);
      CHECK(accepted == kClosed);
      CHECK((co_await pair.near.read()).status == kClosed);
      CHECK((co_await listener.accept()).status == kClosed);
      CHECK((co_await listener.accept(false)).status == kClosed);
    });
  });
}

TEST_CASE("close-race: a connection is closed while its reader is about to park: the read ends") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      std::mt19937 random(1);
      for (int i = 0; i < 2000; ++i) {
        Pair pair = unix_pair(scheduler);
        Io status = Io::ok;
        Event ended;
        go(read_into(pair.near, status, ended));
        const auto at = Clock::now() + microseconds(random() % 20);
        while (Clock::now() < at) {
        }
        pair.near.close();
        while (!ended) co_await yield();
        if (status != kClosed) fail("round {}: not closed", i);
      }
      co_await until_alone(scheduler);
    });
  });
}

namespace {
// The deadline passes while its first call is made, which gets nothing.
struct LateCall final : PollOperation {
  explicit LateCall(PollDesc& its) : PollOperation(its, kRead) {}
  Io call() noexcept override {
    if (++calls == 2) return Io::ok;
    desc.set_deadline(kRead, kPast);
    return Io::would_block;
  }
  Io await_resume() const { return status; }
  int calls = 0;
};
}  // namespace

TEST_CASE("last-call: the deadline passes during a call: one more call is made") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      CHECK(co_await LateCall(*pair.near.desc) == Io::ok);
    });
  });
}

TEST_CASE(
    "close-busy-worker: close with a parked reader and writer, the other worker busy: both end") {
  holds([] {
    run(2, [](Scheduler& scheduler) -> Task<> {
      Event end;
      go([](const Event& until) -> Task<> {  // keeps a worker at the queue
        while (!until) co_await yield();
      }(end));
      std::thread tracer([&] {  // holds the scheduler's lock, so that close() has to wait
        while (!end) {
          (void)scheduler.trace();
          if (kThreadSanitizer) std::this_thread::yield();  // its mutex would starve the others
        }
      });
      struct Closed {
        Pair pair;
        std::array<Io, 2> status{};
        std::array<Event, 2> ended;
      };
      for (int i = 0; i < (kThreadSanitizer ? 10 : 200); ++i) {
        std::array<Closed, 16> all;
        for (Closed& one : all) {
          one.pair = unix_pair(scheduler);
          go(write_bytes(one.pair.near, 1 << 20, one.status[0], one.ended[0]));
          go(read_into(one.pair.near, one.status[1], one.ended[1]));
        }
        co_await sleep_for(1ms);  // until all are parked
        for (Closed& one : all) one.pair.near.close();
        for (Closed& one : all) {
          while (!one.ended[0] || !one.ended[1]) co_await yield();
          if (one.status != std::array{kClosed, kClosed}) fail("round {}: not closed", i);
        }
      }
      end.set();
      tracer.join();
      co_await until_alone(scheduler);
    });
  });
}

TEST_CASE(
    "close-with-reader: a closed connection with a reader: the descriptor stays open until the "
    "reader leaves") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair pair = unix_pair(scheduler);
      PollDesc& desc = *pair.near.desc;
      const int number = desc.fd().get();
      CHECK(desc.enter(PollDesc::kReader));
      pair.near.desc.reset();  // its owner closes it, and leaves
      CHECK(desc.closed());
      CHECK_FALSE(desc.enter(PollDesc::kWriter));
      CHECK(::fcntl(number, F_GETFD) >= 0);
      desc.leave(PollDesc::kReader);
      CHECK(::fcntl(number, F_GETFD) < 0);
      Pair next = unix_pair(scheduler);
      CHECK(next.near.desc.get() == &desc);  // it went back to the free list
      CHECK_FALSE(desc.closed());
      co_return;
    });
  });
}

TEST_CASE(
    "stale-event: an event for the former owner of a PollDesc: does not reach the next owner") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      auto& netpoller = scheduler.netpoller();
      Pair former = unix_pair(scheduler);
      PollDesc* const desc = former.near.desc.get();
      const std::uintptr_t tag = desc->tag();
      former.near.desc.reset();
      Pair next = unix_pair(scheduler);
      REQUIRE(next.near.desc.get() == desc);
      GoroutineList woken;
      netpoller.report(tag, true, true, true, woken);
      CHECK_FALSE(desc->more);
      CHECK(desc->slots[kRead].prepare());  // it is not ready
      netpoller.report(tag, true, true, true, woken);
      Goroutine waiter;
      CHECK(desc->slots[kRead].commit(waiter));  // its wait was not ended
      netpoller.report(tag, true, true, true, woken);
      CHECK(woken.size() == 0);
      netpoller.report(desc->tag(), true, false, false, woken);
      REQUIRE(woken.size() == 1);
      CHECK(woken.pop() == &waiter);
      co_return;
    });
  });
}

TEST_CASE(
    "stale-deadline: a deadline of the former owner of a PollDesc: does not end the next owner's "
    "read") {
  holds([] {
    run(1, [](Scheduler& scheduler) -> Task<> {
      Pair former = unix_pair(scheduler);
      PollDesc* const desc = former.near.desc.get();
      former.near.set_read_deadline(Clock::now() + 20ms);
      former.near.desc.reset();
      Pair next = unix_pair(scheduler);
      REQUIRE(next.near.desc.get() == desc);
      Io status = kClosed;
      Event ended;
      go(read_into(next.near, status, ended));
      co_await sleep_for(60ms);
      CHECK_FALSE(ended);
      next.send("!");
      co_await until(ended);
      CHECK(status == Io::ok);
    });
  });
}

TEST_CASE(
    "second-reader: a second reader of a connection: the program reports the bug and aborts") {
  holds([] {
    const Child child = in_child([] {
      Scheduler scheduler(1, 1);
      scheduler.run([](Scheduler& its) -> Task<> {
        Pair pair = unix_pair(its);
        Io status = Io::ok;
        Event ended;
        go(read_into(pair.near, status, ended));
        co_await yield();  // until it has parked
        (void)co_await pair.near.read();
      }(scheduler));
    });
    CHECK(WIFSIGNALED(child.status));
    CHECK(WTERMSIG(child.status) == SIGABRT);
    CHECK(child.errors == "bug: a descriptor has one reader and one writer at a time\n");
  });
}
