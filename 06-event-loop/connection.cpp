#include "connection.h"

#include <algorithm>
#include <array>
#include <new>
#include <span>
#include <utility>

#include "common/socket/socket.h"
#include "event_loop.h"

namespace {

constexpr std::size_t kTurn = 16 * 1024;   // bytes read in one turn of a connection
constexpr std::size_t kLimit = 64 * 1024;  // bytes kept for a client, in both directions

bool failed(const IoResult& result) {
  return result.status == Io::peer_gone || result.status == Io::out_of_resources;
}

}  // namespace

std::string_view Reader::peek(std::size_t size) const {
  return std::string_view(data_).substr(taken_, size);
}

std::string_view Reader::next(std::size_t size) {
  const std::string_view bytes = peek(size);
  taken_ += bytes.size();
  return bytes;
}

void Reader::append(std::string_view data) { data_ += data; }

void Reader::forget_taken() {
  data_.erase(0, std::exchange(taken_, 0));
  if (data_.empty()) data_.shrink_to_fit();
}

Connection::Connection(EventLoop& loop, Fd socket) : loop_(loop), socket_(std::move(socket)) {}

Reader& Connection::reader() {
  loop_.assert_in_loop_thread();
  return input_;
}

void Connection::write(std::string_view data) {
  loop_.assert_in_loop_thread();
  if (closed_) return;
  if (output_.empty()) {
    const IoResult out = write_some(socket_, data);
    if (failed(out)) return close();
    data.remove_prefix(out.size);
    if (out.size > 0) last_active_ = Clock::now();
  }
  if (data.empty()) return;
  try {
    output_ += data;
  } catch (const std::bad_alloc&) {  // no byte may follow a gap
    return close();
  }
  loop_.apply_interest(*this);
}

void Connection::close() {
  loop_.assert_in_loop_thread();
  loop_.close(*this);
}

std::size_t Connection::room() const {
  return kLimit - std::min(kLimit, input_.len() + output_.size());
}

Interest Connection::interest() const {
  return {.read = !peer_finished_ && room() > 0, .write = !output_.empty()};
}

void Connection::on_readable() {
  std::array<char, kTurn> buffer;
  const IoResult in = read_some(socket_, std::span(buffer).first(std::min(kTurn, room())));
  if (failed(in)) return close();
  if (in.status == Io::end) peer_finished_ = true;
  if (in.status != Io::ok) return;
  last_active_ = Clock::now();
  input_.append({buffer.data(), in.size});
  request();
}

void Connection::on_writable() {
  const IoResult out = write_some(socket_, output_);
  if (failed(out)) return close();
  if (out.size > 0) last_active_ = Clock::now();
  output_.erase(0, out.size);
  if (output_.empty()) output_.shrink_to_fit();  // no buffer while idle
}

// Before it closes a silent connection, it tries to read and to write once more. A handler may
// have kept the loop from reading, and the kernel reports room to write only when a good part
// of the send buffer is free.
void Connection::on_idle_timer() {
  const auto silent = [this] { return Clock::now() >= last_active_ + loop_.idle_timeout_; };
  if (silent() && interest().read) on_readable();
  if (silent() && interest().write) on_writable();
  if (silent()) return close();
  if (!closed_) loop_.watch_idle(*this);
}

void Connection::request() {
  loop_.on_request_(*this);
  input_.forget_taken();
}
