#include "common/testing/swarm.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/client.h"

namespace {

constexpr std::size_t kGreeting = 16;  // bytes that prove that a client is served
constexpr Traffic kGreetings{.bytes = kGreeting, .largest_chunk = kGreeting};
constexpr std::size_t kOnTheirWay = 100;

// splitmix64: a good 64-bit hash of a counter, in three lines (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

std::optional<Address> source_for(const Address& server, std::size_t index) {
#ifdef __linux__
  if (to_text(server).starts_with("127.")) {
    return resolve(fmt::format("127.0.1.{}", 1 + index % 250), 0);
  }
#endif
  (void)server, (void)index;
  return std::nullopt;
}

void fill_pattern(std::uint64_t seed, std::size_t offset, std::span<char> out) {
  std::size_t filled = 0;
  while (filled < out.size()) {
    const std::size_t at = offset + filled;
    const std::uint64_t word = mix(seed + at / 8);
    const std::size_t n = std::min(8 - at % 8, out.size() - filled);
    std::memcpy(out.data() + filled, reinterpret_cast<const char*>(&word) + at % 8, n);
    filled += n;
  }
}

Swarm::Swarm(const Address& server, std::size_t count, std::uint64_t seed)
    : server_(server), count_(count), seed_(seed), random_(seed) {}

void Swarm::need_descriptors(std::size_t count) {
  const std::size_t limit = raise_descriptor_limit();
  if (limit < count + 50) {
    skip("{} clients need as many descriptors, and the limit is {} (ulimit -Hn)", count, limit);
  }
}

void Swarm::add(std::size_t index) {
  Member member;
  try {
    const auto source = source_for(server_, index);
    member.socket = connect_to(server_, source ? &*source : nullptr);
  } catch (const std::system_error& error) {
    fail("client {} of {} cannot connect: {}", index + 1, count_, error.what());
  }
  member.seed = mix(seed_ ^ mix(index));
  member.target = kGreeting;
  members_.push_back(std::move(member));
}

void Swarm::connect() {
  need_descriptors(count_);
  members_.reserve(count_);
  drive(kGreetings, {.connecting = true});
}

std::size_t Swarm::connect_as_many_as_it_serves(milliseconds still) {
  need_descriptors(count_);
  members_.reserve(count_);
  drive(kGreetings, {.connecting = true, .may_break = true, .may_stall = true, .still = still});
  std::erase_if(members_, [](const Member& m) { return !m.socket || !done(m, kGreetings); });
  return members_.size();
}

void Swarm::exchange(const Traffic& traffic) {
  for (Member& member : members_) member.target += traffic.bytes;
  drive(traffic, {});
}

std::size_t Swarm::exchange_or_close(const Traffic& traffic) {
  if (members_.empty()) {
    for (std::size_t i = 0; i < count_; ++i) add(i);
  }
  for (Member& member : members_) member.target += traffic.bytes;
  drive(traffic, {.may_break = true});
  std::erase_if(members_, [](const Member& member) { return !member.socket; });
  return members_.size();
}

void Swarm::leave() { members_.clear(); }

void Swarm::reset() {
  for (Member& member : members_) reset_on_close(member.socket);
  members_.clear();
}

bool Swarm::done(const Member& member, const Traffic& traffic) {
  if (!member.socket) return true;  // broken, and forgotten
  return member.received == member.target && (!traffic.finish || member.ended);
}

short Swarm::interest(const Member& member, const Traffic& traffic, bool reading) const {
  int events = 0;
  if (member.sent < member.target || (traffic.finish && !member.half_closed)) events |= POLLOUT;
  if (reading) events |= POLLIN;
  return static_cast<short>(events);
}

void Swarm::drive(const Traffic& traffic, const Terms& terms) {
  bool reading = !traffic.read_late;
  std::vector<pollfd> entries;
  std::vector<std::size_t> owners;  // entries[i] is of members_[owners[i]]
  auto last_move = Clock::now();
  auto last_report = last_move;
  for (;;) {
    fail_if_check_takes_too_long();
    const auto finished = static_cast<std::size_t>(std::count_if(
        members_.begin(), members_.end(), [&](const Member& m) { return done(m, traffic); }));
    while (terms.connecting && members_.size() < count_ &&
           members_.size() - finished < kOnTheirWay) {
      add(members_.size());
    }
    if (finished == members_.size()) return;
    if (on_progress && Clock::now() - last_report > 100ms) {
      on_progress(finished);
      last_report = Clock::now();
    }

    entries.clear();
    owners.clear();
    for (std::size_t i = 0; i < members_.size(); ++i) {
      if (done(members_[i], traffic)) continue;
      entries.push_back({members_[i].socket.get(), interest(members_[i], traffic, reading), 0});
      owners.push_back(i);
    }
    if (::poll(entries.data(), static_cast<nfds_t>(entries.size()), 100) < 0 && errno != EINTR) {
      throw std::system_error(errno, std::system_category(), "poll");
    }

    for (std::size_t i = 0; i < entries.size(); ++i) {
      Member& member = members_[owners[i]];
      const int ready = entries[i].revents;
      Moved moved = Moved::nothing;
      if (ready & POLLOUT) moved = send(member, traffic);
      if (moved != Moved::broke && reading && ready & (POLLIN | POLLHUP | POLLERR)) {
        const Moved read = receive(member, traffic);
        if (read != Moved::nothing) moved = read;
      }
      if (moved == Moved::broke) {
        if (!terms.may_break) fail_at(member, "the connection broke");
        member.socket.reset();
      }
      if (moved != Moved::nothing) last_move = Clock::now();
    }

    const auto still = Clock::now() - last_move;
    if (!reading && still > 300ms) {
      reading = true;  // nothing more goes out: the queues on the way are full, or all is sent
      last_move = Clock::now();
    } else if (still > terms.still) {
      if (terms.may_stall) return;
      const auto stuck = std::find_if(members_.begin(), members_.end(),
                                      [&](const Member& m) { return !done(m, traffic); });
      fail_at(*stuck, fmt::format("nothing moved for {} ms; {} of {} clients are done",
                                  patience.count(), finished, members_.size()));
    }
  }
}

std::size_t Swarm::random_size(const Traffic& traffic) {
  const std::size_t size = std::uniform_int_distribution<std::size_t>(
      traffic.smallest_chunk, traffic.largest_chunk)(random_);
  if (scratch_.size() < size) scratch_.resize(size);
  return size;
}

Swarm::Moved Swarm::send(Member& member, const Traffic& traffic) {
  const std::size_t left = member.target - member.sent;
  if (left > 0) {
    const std::size_t size = std::min(random_size(traffic), left);
    const std::span<char> chunk(scratch_.data(), size);
    fill_pattern(member.seed, member.sent, chunk);
    const IoResult out = write_some(member.socket, {chunk.data(), chunk.size()});
    if (out.status == Io::would_block) return Moved::nothing;
    if (out.status != Io::ok) return Moved::broke;
    member.sent += out.size;
  }
  if (traffic.finish && member.sent == member.target && !member.half_closed) {
    ::shutdown(member.socket.get(), SHUT_WR);
    member.half_closed = true;
  }
  return Moved::something;
}

Swarm::Moved Swarm::receive(Member& member, const Traffic& traffic) {
  const std::size_t size = random_size(traffic);
  const IoResult in = read_some(member.socket, {scratch_.data(), size});
  if (in.status == Io::would_block) return Moved::nothing;
  if (in.status == Io::end) {
    member.ended = true;
    if (traffic.finish && member.received == member.target) return Moved::something;
    return Moved::broke;
  }
  if (in.status != Io::ok) return Moved::broke;

  expected_.resize(in.size);
  fill_pattern(member.seed, member.received, expected_);
  for (std::size_t i = 0; i < in.size; ++i) {
    if (scratch_[i] == expected_[i]) continue;
    member.received += i;
    fail_at(member, fmt::format("byte {:#04x} is due and {:#04x} came",
                                static_cast<unsigned char>(expected_[i]),
                                static_cast<unsigned char>(scratch_[i])));
  }
  member.received += in.size;
  if (member.received > member.sent) fail_at(member, "more came back than was sent");
  return Moved::something;
}

void Swarm::fail_at(const Member& member, const std::string& what) const {
  fail("client {} of {}: {}, {}after {} bytes received, {} of {} sent (seed {})",
       &member - members_.data() + 1, count_, what, member.ended ? "the server has closed, " : "",
       member.received, member.sent, member.target, seed_);
}
