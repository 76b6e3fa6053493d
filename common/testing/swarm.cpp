#include "common/testing/swarm.h"

#include <algorithm>

#include "common/socket/process.h"

namespace {

constexpr std::size_t kGreeting = 16;  // bytes that prove that a client is served
constexpr Traffic kGreetings{.bytes = kGreeting, .largest_chunk = kGreeting};

}  // namespace

Swarm::Swarm(const Address& server, std::size_t count, std::uint64_t seed)
    : Clients(server, seed), count_(count), random_(seed) {
  one_at_a_time_ = true;
}

void Swarm::need_descriptors(std::size_t count) {
  const std::size_t limit = raise_descriptor_limit();
  if (limit < count + 50) {
    skip("{} clients need as many descriptors, and the limit is {} (ulimit -Hn)", count, limit);
  }
}

void Swarm::connect() {
  need_descriptors(count_);
  connect_later(0, 1, count_, kGreeting);
  exchange(kGreetings);
}

std::size_t Swarm::connect_as_many_as_it_serves(milliseconds still) {
  need_descriptors(count_);
  connect_later(0, 1, count_, kGreeting);
  begin(kGreetings, true);
  drive(still);
  keep_served();
  return connections_.size();
}

void Swarm::exchange(const Traffic& traffic) {
  begin(traffic, false);
  complete();
}

std::size_t Swarm::exchange_or_close(const Traffic& traffic) {
  if (connections_.empty()) connect_later(0, 1, count_, traffic.bytes);
  begin(traffic, true);
  complete();
  keep_served();
  return connections_.size();
}

void Swarm::begin(const Traffic& traffic, bool may_break) {
  traffic_ = traffic;
  may_break_ = may_break;
  finishing_ = traffic.finish;
  reading_ = !traffic.read_late;
  for (Connection& c : connections_) {
    expect(c, traffic.bytes);
    watch(c);
  }
}

void Swarm::complete() {
  if (!reading_) {
    drive(300ms);  // until the queues on the way are full, or all is sent
    reading_ = true;
    for (Connection& c : connections_) watch(c);
  }
  if (drive(patience)) return;
  const auto waits = [this](const Connection& c) { return c.socket && due(c) > 0; };
  const auto stuck = std::count_if(connections_.begin(), connections_.end(), waits);
  fail_at(*std::find_if(connections_.begin(), connections_.end(), waits),
          fmt::format("nothing moved for {} ms; {} of {} clients are not done", patience.count(),
                      stuck, connections_.size()));
}

std::size_t Swarm::chunk() {
  return std::uniform_int_distribution<std::size_t>(traffic_.smallest_chunk,
                                                    traffic_.largest_chunk)(random_);
}

void Swarm::wrong(Connection& c, std::size_t offset, char expected, char came) {
  c.received += offset;
  fail_at(c, fmt::format("byte {:#04x} is due and {:#04x} came",
                         static_cast<unsigned char>(expected), static_cast<unsigned char>(came)));
}

void Swarm::lost(Connection& c, const std::string& how) {
  if (!c.socket) fail_at(c, "cannot connect: " + how);
  if (!may_break_ || c.received > c.sent) fail_at(c, how);
}

void Swarm::fail_at(const Connection& c, const std::string& what) const {
  fail("client {} of {}: {}, after {} bytes received, {} of {} sent (seed {})", c.number + 1,
       count_, what, c.received, c.sent, c.target, seed_);
}
