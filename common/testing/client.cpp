#include "common/testing/client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "common/socket/process.h"
#include "common/socket/socket.h"

bool wait_for(const Fd& socket, short events, milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  for (;;) {
    fail_if_check_takes_too_long();
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    pollfd entry = {socket.get(), events, 0};
    const int ready =
        ::poll(&entry, 1, static_cast<int>(std::max<milliseconds::rep>(left.count(), 0)));
    if (ready > 0) return true;
    if (left <= 0ms) return false;
  }
}

void reset_on_close(const Fd& socket) {
  const linger at_once = {1, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

Client::Client(const Address& server, milliseconds limit)
    : socket_(connect_to(server)), limit_(limit) {
  if (!wait_for(socket_, POLLOUT, limit_)) {
    fail("not connected after {} ms: is the backlog full?", limit_.count());
  }
  if (const int error = connect_error(socket_)) fail("cannot connect: {}", error_text(error));
}

void Client::send(std::string_view data) {
  const std::size_t all = data.size();
  while (!data.empty()) {
    const IoResult out = write_some(socket_, data);
    if (out.status == Io::would_block) {
      if (wait_for(socket_, POLLOUT, limit_)) continue;
      fail("the server took {} of {} bytes, then nothing for {} ms", all - data.size(), all,
           limit_.count());
    }
    if (out.status != Io::ok)
      fail("the connection broke after {} of {} bytes were sent", all - data.size(), all);
    data.remove_prefix(out.size);
  }
}

std::string Client::receive(std::size_t size) {
  std::string data(size, '\0');
  std::size_t have = 0;
  while (have < size) {
    fail_if_check_takes_too_long();
    const IoResult in = read_some(socket_, {data.data() + have, size - have});
    if (in.status == Io::would_block) {
      if (wait_for(socket_, POLLIN, limit_)) continue;
      fail("{} of {} bytes came, then nothing for {} ms", have, size, limit_.count());
    }
    if (in.status == Io::end) fail("the server closed after {} of {} bytes", have, size);
    if (in.status != Io::ok)
      fail("the connection broke after {} of {} bytes were received", have, size);
    have += in.size;
  }
  return data;
}

std::string Client::receive_until_end() {
  std::string data;
  std::array<char, 64 * 1024> buffer;
  for (;;) {
    fail_if_check_takes_too_long();
    const IoResult in = read_some(socket_, buffer);
    if (in.status == Io::end) return data;
    if (in.status == Io::would_block) {
      if (wait_for(socket_, POLLIN, limit_)) continue;
      fail("{} bytes came, then neither more nor the end for {} ms", data.size(), limit_.count());
    }
    if (in.status != Io::ok)
      fail("the connection broke after {} bytes; the end was due", data.size());
    data.append(buffer.data(), in.size);
  }
}

double Client::echo(std::string_view text) {
  const auto start = Clock::now();
  send(text);
  const std::string back = receive(text.size());
  if (back != text) fail("\"{}\" came back as \"{}\"", text, back);
  return ms_since(start);
}

std::size_t Client::send_what_fits(std::string_view data, milliseconds still) {
  const std::size_t all = data.size();
  while (!data.empty() && wait_for(socket_, POLLOUT, still)) {
    const IoResult out = write_some(socket_, data);
    if (out.status == Io::ok) data.remove_prefix(out.size);
    if (out.status == Io::peer_gone) break;
  }
  return all - data.size();
}

bool Client::hears_within(milliseconds limit) const { return wait_for(socket_, POLLIN, limit); }

bool Client::is_closed_within(milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  std::array<char, 64 * 1024> buffer;
  while (Clock::now() < deadline &&
         wait_for(socket_, POLLIN, std::chrono::ceil<milliseconds>(deadline - Clock::now()))) {
    const IoResult in = read_some(socket_, buffer);
    if (in.status == Io::end || in.status == Io::peer_gone) return true;
  }
  return false;
}

void Client::limit_receive_queue(int bytes) {
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

void Client::finish_sending() { ::shutdown(socket_.get(), SHUT_WR); }

void Client::reset() {
  reset_on_close(socket_);
  socket_.reset();
}
