// One thread of the load generator, and the connections that it drives.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/bench/load.h"
#include "common/bench/waiter.h"
#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"

// What connection `number` sends: 65,521 random bytes, over and over, from a place of its
// own. They are made once, so that sending and comparing cost the generator no hashing.
// Slow connections send '#' and no others do.
class Pattern {
 public:
  static constexpr std::size_t kMostBytes = 64 * 1024;  // that can be had at once

  explicit Pattern(std::uint64_t seed);

  // At most kMostBytes of it, from `offset` on.
  std::string_view at(std::size_t number, std::uint64_t offset, std::size_t size) const {
    const std::size_t start = static_cast<std::size_t>((number * 7919 + offset) % kPeriod);
    return {bytes_.data() + start, size};
  }
  std::string_view of_slow(std::size_t size) const { return {hashes_.data(), size}; }

 private:
  static constexpr std::size_t kPeriod = 65'521;  // prime: every connection starts elsewhere
  std::string bytes_;
  std::string hashes_ = std::string(kMostBytes, '#');
};

struct Connection {
  Fd socket;
  std::size_t number = 0;    // over all threads; it decides what is sent
  std::uint64_t wanted = 0;  // bytes: of the messages that were due so far
  std::uint64_t sent = 0;
  std::uint64_t received = 0;
  std::uint64_t answered = 0;              // messages
  std::vector<Clock::time_point> sent_at;  // closed loop: of the last `depth` messages
  bool blocked = false;                    // the socket takes no more for now
};

struct Schedule {
  Clock::time_point start;  // of the warm-up
  Clock::time_point begin;  // of what is measured
  Clock::time_point end;
  bool measures(Clock::time_point due) const { return due >= begin && due < end; }
};

// One thread's connections. Its functions are called by one thread at a time; only
// `done` may be asked meanwhile.
class Worker {
 public:
  Worker(const Address& server, const LoadPlan& plan, const Pattern& pattern, std::size_t number);

  // Connects, and has each connection's first message come back.
  void connect();
  // The load, and then the wait for what is still under way.
  void run(const Schedule& schedule);
  // Ends it; what was counted.
  LoadResult leave();

  std::uint64_t done() const { return done_.load(std::memory_order_relaxed); }
  std::size_t held() const { return quick_; }

 private:
  void start_connecting(std::size_t number);
  void finish_connecting();
  void handle(const Ready& ready);
  void send_due(Clock::time_point now);
  void queue(Connection& c, Clock::time_point now);
  void flush(Connection& c);
  void receive(Connection& c);
  void compare(const Connection& c, std::string_view came);
  void count_answer(Connection& c, Clock::time_point now);
  void lose(Connection& c, const char* how);
  void give_up(const Connection& c, Clock::time_point now);
  void give_up_unsent(Clock::time_point now);
  void note_cpu(Clock::time_point now);

  Clock::time_point due_at(std::uint64_t n) const;
  Clock::time_point due_at(const Connection& c, std::uint64_t message) const;
  std::uint64_t messages(const Connection& c) const { return c.wanted / plan_.size; }
  bool is_idle(const Connection& c) const {
    return c.number >= plan_.clients && c.number < plan_.clients + plan_.idle;
  }
  bool is_slow(const Connection& c) const { return c.number >= plan_.clients + plan_.idle; }
  bool in_closed_loop(const Connection& c) const { return plan_.rate == 0 || is_slow(c); }
  std::string_view pattern(const Connection& c, std::uint64_t offset, std::size_t size) const {
    return is_slow(c) ? pattern_.of_slow(size) : pattern_.at(c.number, offset, size);
  }
  std::size_t index_of(const Connection& c) const {
    return static_cast<std::size_t>(&c - connections_.data());
  }

  const Address& server_;
  const LoadPlan& plan_;
  const Pattern& pattern_;
  const std::size_t number_;

  Waiter waiter_;
  std::vector<Connection> connections_;  // those that send, the slow ones last
  std::size_t quick_ = 0;                // how many of them are not slow
  std::vector<Fd> idle_;
  Schedule schedule_ = {};
  bool connecting_ = true;
  std::uint64_t next_due_ = 0;   // open loop: which of the thread's messages is next
  std::uint64_t under_way_ = 0;  // messages due and not answered
  std::vector<char> buffer_ = std::vector<char>(Pattern::kMostBytes);
  LoadResult result_;
  std::chrono::nanoseconds cpu_before_{-1};  // when measuring began; -1: it has not
  Clock::time_point cpu_since_;
  std::atomic<std::uint64_t> done_{0};  // connections, then messages
};
