// Thousands of clients at once: what the tests attack a server with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>

#include "common/testing/clients.h"
#include "common/testing/outcome.h"

// What every client does in one exchange.
struct Traffic {
  std::size_t bytes = 64;          // sent, and expected back
  std::size_t smallest_chunk = 1;  // of each write and read; the sizes are random
  std::size_t largest_chunk = 64;
  bool finish = false;     // half-close after the last byte; expect the end after the echo
  bool read_late = false;  // read nothing until nothing more can be sent
};

class Swarm : private Clients {
 public:
  // `count` clients, none of them connected yet. Everything random follows the seed.
  Swarm(const Address& server, std::size_t count, std::uint64_t seed);

  // Skips the check unless this process may open `count` sockets.
  static void need_descriptors(std::size_t count);

  // Connects all of them. Each has had its first 16 bytes back: the server, and not
  // only the kernel, has accepted it.
  void connect();

  // Like connect, for a server that may not serve all. When nothing has moved for
  // `still`, the clients without an answer leave. Returns how many are held.
  std::size_t connect_as_many_as_it_serves(milliseconds still);

  // All clients send and receive at once. Fails when a byte is wrong, a connection
  // breaks, or nothing moves for patience.
  void exchange(const Traffic& traffic);

  // Like exchange, but a broken connection is forgotten, not a failure: for servers
  // under fault injection. A wrong byte is still a Failure. Returns the survivors.
  std::size_t exchange_or_close(const Traffic& traffic);

  // Disconnects all: FIN, or RST.
  void leave() { close_all(false); }
  void reset() { close_all(true); }

  std::size_t size() const { return count_; }

 private:
  void begin(const Traffic& traffic, bool may_break);
  void complete();
  std::size_t chunk() override;
  void wrong(Connection& c, std::size_t offset, char expected, char came) override;
  void lost(Connection& c, const std::string& how) override;
  [[noreturn]] void fail_at(const Connection& c, const std::string& what) const;

  std::size_t count_;
  std::mt19937_64 random_;
  Traffic traffic_;
  bool may_break_ = false;  // forget a broken connection
};
