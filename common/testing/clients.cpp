#include "common/testing/clients.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/client.h"

namespace {

constexpr std::size_t kConnectsAtOnce = 100;  // no backlog overflows (macOS: 128)

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
  while (!out.empty()) {
    const std::uint64_t word = mix(seed + offset / 8);
    const std::size_t at = offset % 8;
    const std::size_t n = std::min(8 - at, out.size());
    if (n == 8) {
      std::memcpy(out.data(), &word, 8);  // a size the compiler knows: one instruction
    } else {
      std::memcpy(out.data(), reinterpret_cast<const char*>(&word) + at, n);
    }
    offset += n;
    out = out.subspan(n);
  }
}

void Clients::fill(const Connection& c, std::uint64_t offset, std::span<char> out) {
  fill_pattern(mix(seed_ ^ mix(c.number)), offset, out);
}

void Clients::connect_later(std::size_t first, std::size_t step, std::size_t end,
                            std::size_t greeting) {
  next_ = first;
  step_ = step;
  end_ = end;
  greeting_ = greeting;
  connections_.reserve(unopened());
}

void Clients::open(std::size_t number) {
  Connection& c = connections_.emplace_back();
  c.number = number;
  try {
    const auto source = source_for(server_, number);
    c.socket = connect_to(server_, source ? &*source : nullptr);
  } catch (const std::system_error& error) {
    return lost(c, error.what());
  }
  expect(c, greeting_);
  watch(c);
}

bool Clients::drive(milliseconds still) {
  auto last_move = Clock::now();
  for (;;) {
    fail_if_check_takes_too_long();
    for (; next_ < end_ && under_way_ < kConnectsAtOnce * greeting_; next_ += step_) open(next_);
    if (under_way_ == 0) return true;
    moved_ = false;
    handle_ready(std::min<milliseconds>(still, 100ms));
    if (moved_) last_move = Clock::now();
    if (Clock::now() - last_move > still) return false;
  }
}

void Clients::handle_ready(std::chrono::nanoseconds limit) {
  waiter_.wait(limit, [this](std::size_t owner, short events) {
    Connection& c = connections_[owner];
    if (c.socket && (events & POLLOUT) != 0) {
      const int error = c.sent == 0 ? connect_error(c.socket) : 0;
      if (error == 0) flush(c);
      if (error != 0) lose(c, error_text(error));
    }
    if (c.socket && (events & (POLLIN | POLLHUP | POLLERR)) != 0) receive(c);
  });
}

void Clients::expect(Connection& c, std::uint64_t bytes) {
  c.target += bytes;
  under_way_ += bytes + (finishing_ ? 1 : 0);
}

void Clients::watch(Connection& c) {
  const bool writing = c.sent < c.target || (finishing_ && !c.half_closed);
  const auto events = static_cast<short>((reading_ ? POLLIN : 0) | (writing ? POLLOUT : 0));
  if (events != c.watched) waiter_.watch(c.socket, index_of(c), events);
  c.watched = events;
}

void Clients::flush(Connection& c) {
  bool more = c.sent < c.target;
  while (more) {
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(c.target - c.sent, chunk()));
    if (buffer_.size() < size) buffer_.resize(size);
    fill(c, c.sent, {buffer_.data(), size});
    const IoResult out = write_some(c.socket, {buffer_.data(), size});
    if (out.status == Io::peer_gone) return lose(c, "reset by the server");
    c.sent += out.size;
    moved_ = moved_ || out.status == Io::ok;
    more = out.status == Io::ok && c.sent < c.target && !one_at_a_time_;
  }
  if (finishing_ && c.sent == c.target && !std::exchange(c.half_closed, true)) {
    ::shutdown(c.socket.get(), SHUT_WR);
    moved_ = true;
  }
  watch(c);
}

void Clients::receive(Connection& c) {
  const std::size_t size = chunk();
  if (buffer_.size() < size) buffer_.resize(size);
  const IoResult in = read_some(c.socket, {buffer_.data(), size});
  if (in.status == Io::end) return end(c);
  if (in.status == Io::peer_gone) return lose(c, "reset by the server");
  if (in.status != Io::ok) return;
  moved_ = true;

  if (expected_.size() < in.size) expected_.resize(in.size);
  fill(c, c.received, {expected_.data(), in.size});
  if (std::memcmp(buffer_.data(), expected_.data(), in.size) != 0) {
    for (std::size_t i = 0; i < in.size; ++i) {
      if (buffer_[i] != expected_[i]) wrong(c, i, expected_[i], buffer_[i]);
    }
  }
  under_way_ -= std::min<std::uint64_t>(in.size, c.target - c.received);
  c.received += in.size;
  if (c.received > c.sent) return lose(c, "more came back than was sent");
  came(c, in.size);
}

void Clients::end(Connection& c) {
  if (!finishing_ || c.received < c.target) return lose(c, "closed by the server");
  c.ended = true;
  --under_way_;
  moved_ = true;
  waiter_.remove(c.socket, index_of(c));
}

std::uint64_t Clients::due(const Connection& c) const {
  return c.target - std::min(c.received, c.target) + (finishing_ && !c.ended ? 1 : 0);
}

void Clients::lose(Connection& c, const std::string& how) {
  lost(c, how);
  under_way_ -= due(c);
  moved_ = true;
  waiter_.remove(c.socket, index_of(c));
  c.socket.reset();
}

std::size_t Clients::keep_served() {
  const std::size_t forgotten = std::erase_if(
      connections_, [](const Connection& c) { return !c.socket || c.received < c.target; });
  under_way_ = 0;
  waiter_ = Waiter();  // the places in connections_ are new
  for (Connection& c : connections_) {
    c.watched = 0;
    watch(c);
  }
  return forgotten;
}

void Clients::close_all(bool reset) {
  for (const Connection& c : connections_) {
    if (c.socket && reset) reset_on_close(c.socket);
  }
  connections_.clear();
  keep_served();
}
