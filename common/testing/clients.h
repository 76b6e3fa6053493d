// Many connections to one echo server, driven by one thread. The tests' swarm and the
// load generator (common/bench) both use it.
//
// Each connection sends a pattern of its own, and each byte that comes back is compared.
// So a byte that is lost, repeated, changed or delivered to another client is noticed at
// the byte where it happens. Source addresses are spread over 127.0.0.0/8, because one
// address has some 28,000 ports (TIME_WAIT keeps them taken for a minute).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"
#include "common/testing/waiter.h"

// The endless pseudo-random bytes of one client: the same for the same seed.
void fill_pattern(std::uint64_t seed, std::size_t offset, std::span<char> out);

// Where client `index` of a server on 127.0.0.0/8 connects from: one of 250 loopback
// addresses. nullopt for other servers, and where only 127.0.0.1 exists (macOS).
std::optional<Address> source_for(const Address& server, std::size_t index);

class Clients {
 public:
  Clients(const Clients&) = delete;
  Clients& operator=(const Clients&) = delete;

 protected:
  struct Connection {
    Fd socket = {};
    std::size_t number = 0;    // it decides what is sent
    std::uint64_t target = 0;  // bytes to send and to receive, so far
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    bool half_closed = false;
    bool ended = false;  // the server closed after the last byte, as it must
    short watched = 0;   // POLLIN, POLLOUT or both
  };

  Clients(const Address& server, std::uint64_t seed) : server_(server), seed_(seed) {}
  virtual ~Clients() = default;

  // Lets the next drive() open the connections first, first + step … below `end`. Each sends
  // `greeting` bytes. When they are back the server, and not only the kernel, has accepted it.
  void connect_later(std::size_t first, std::size_t step, std::size_t end, std::size_t greeting);
  // Runs until all that is under way has come back. Returns false if nothing moved for `still`.
  bool drive(milliseconds still);
  // Handles what becomes ready within `limit`.
  void handle_ready(std::chrono::nanoseconds limit);
  // Adds to the connection's target. flush() or drive() sends it.
  void expect(Connection& c, std::uint64_t bytes);
  void flush(Connection& c);
  void receive(Connection& c);
  void watch(Connection& c);
  // Forgets the connections whose target is not reached; the others move up. Returns how
  // many were forgotten.
  std::size_t keep_served();
  // Disconnects all: FIN, or RST.
  void close_all(bool reset);

  // The size of one read or write.
  virtual std::size_t chunk() = 0;
  // What the connection sends from `offset` on.
  virtual void fill(const Connection& c, std::uint64_t offset, std::span<char> out);
  // `bytes` more bytes came back and were compared.
  virtual void came(Connection&, std::size_t /*bytes*/) {}
  // The byte at c.received + offset is wrong.
  virtual void wrong(Connection& c, std::size_t offset, char expected, char came) = 0;
  // Called before the socket is closed; the socket is empty if it could not be connected.
  virtual void lost(Connection& c, const std::string& how) = 0;

  // Bytes, and the end, that the connection still waits for.
  std::uint64_t due(const Connection& c) const;
  std::size_t index_of(const Connection& c) const {
    return static_cast<std::size_t>(&c - connections_.data());
  }
  std::size_t unopened() const { return next_ < end_ ? (end_ - next_ - 1) / step_ + 1 : 0; }

  const Address server_;
  const std::uint64_t seed_;
  std::vector<Connection> connections_;
  std::uint64_t under_way_ = 0;  // bytes, and (if `finishing_`) ends, that are due
  bool reading_ = true;
  bool finishing_ = false;      // half-close at the target, and expect the server's end
  bool one_at_a_time_ = false;  // one write for each event: the server sees the chunks
  Waiter waiter_;

 private:
  void open(std::size_t number);
  void lose(Connection& c, const std::string& how);
  void end(Connection& c);

  std::size_t next_ = 0, step_ = 1, end_ = 0, greeting_ = 0;  // connections still to open
  bool moved_ = false;
  std::vector<char> buffer_;
  std::vector<char> expected_;  // what `buffer_` should be
};
