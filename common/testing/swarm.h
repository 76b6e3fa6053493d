// Thousands of clients at once, driven from one thread by poll(2).
//
// Each client sends a pattern of its own, so that a byte that is lost, repeated,
// changed or delivered to another client is noticed at the byte where it happens.
// Their source addresses are spread over 127.0.0.0/8, because one address has
// some 28,000 ports (TIME_WAIT keeps them taken for a minute).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"

// The endless pseudo-random bytes of one client: the same for the same seed.
void fill_pattern(std::uint64_t seed, std::size_t offset, std::span<char> out);

// Where client `index` of a server on 127.0.0.0/8 connects from: one of 250 loopback
// addresses. Nothing for other servers, and where only 127.0.0.1 exists (macOS).
std::optional<Address> source_for(const Address& server, std::size_t index);

// What every client does in one exchange.
struct Traffic {
  std::size_t bytes = 64;          // sent, and expected back
  std::size_t smallest_chunk = 1;  // each write and read is of so many bytes, at random
  std::size_t largest_chunk = 64;
  bool finish = false;     // half-close after the last byte; expect the end after the echo
  bool read_late = false;  // read nothing until nothing more can be sent
};

class Swarm {
 public:
  // Of `count` clients; none is connected yet. Everything random follows the seed.
  Swarm(const Address& server, std::size_t count, std::uint64_t seed);

  // Skips the check unless this process may open `count` sockets.
  static void need_descriptors(std::size_t count);

  // Connects all of them. Each has had its first 16 bytes back: the server, and not
  // only the kernel, has taken it in. At most 100 are on their way at a time, so that
  // no backlog overflows (macOS: 128).
  void connect();

  // The same with a server that may not serve them all: when nothing has moved for
  // `still`, those that have heard nothing leave. Returns how many are held.
  std::size_t connect_as_many_as_it_serves(milliseconds still);

  // All clients send and receive at once. Fails when a byte is wrong, a connection
  // breaks, or nothing moves for patience.
  void exchange(const Traffic& traffic);

  // Like exchange, but a broken connection is forgotten, not a failure: for servers
  // under fault injection. A wrong byte is still a Failure. Returns the survivors.
  std::size_t exchange_or_close(const Traffic& traffic);

  // Disconnects all: FIN, or RST.
  void leave();
  void reset();

  std::size_t size() const { return count_; }
  std::uint64_t seed() const { return seed_; }
  // Called about ten times a second while something is under way.
  std::function<void(std::size_t done)> on_progress;

 private:
  struct Member {
    Fd socket;
    std::uint64_t seed = 0;
    std::size_t sent = 0;      // bytes so far, over all exchanges
    std::size_t received = 0;  // likewise
    std::size_t target = 0;    // of both, in this exchange
    bool half_closed = false;
    bool ended = false;  // the server closed
  };
  enum class Moved { nothing, something, broke };

  void add(std::size_t index);
  Moved send(Member& member, const Traffic& traffic);
  Moved receive(Member& member, const Traffic& traffic);
  static bool done(const Member& member, const Traffic& traffic);
  short interest(const Member& member, const Traffic& traffic, bool reading) const;
  // Runs until each member is done. What else may happen is in `terms`.
  struct Terms {
    bool connecting = false;  // add members until there are count_ of them
    bool may_break = false;   // forget a broken connection
    bool may_stall = false;   // return when nothing moved for `still`
    milliseconds still = patience;
  };
  void drive(const Traffic& traffic, const Terms& terms);
  std::size_t random_size(const Traffic& traffic);
  [[noreturn]] void fail_at(const Member& member, const std::string& what) const;

  Address server_;
  std::size_t count_;
  std::uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<Member> members_;
  std::string scratch_;   // one chunk, as sent or received
  std::string expected_;  // what the chunk should be
};
