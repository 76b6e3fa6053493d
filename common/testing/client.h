// One client, for checks that go step by step. No wait is longer than its limit;
// what has not happened by then is a Failure.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"

class Client {
 public:
  // Returns when the kernel has connected it; `accept` may not have.
  explicit Client(const Address& server, milliseconds limit = patience);

  void send(std::string_view data);
  std::string receive(std::size_t size);  // exactly `size` bytes
  std::string receive_until_end();

  // Sends the text and receives the same; returns how long that took, in ms.
  double echo(std::string_view text);

  // Sends as much of `data` as the queues take: until all is sent, or nothing has
  // moved for `still`. Returns how much was sent.
  std::size_t send_what_fits(std::string_view data, milliseconds still = 300ms);

  bool hears_within(milliseconds limit) const;  // bytes or the end have arrived
  bool is_closed_within(milliseconds limit);    // the end, or a reset, has arrived
  void limit_receive_queue(int bytes);          // in our kernel, which takes up to twice that
  void finish_sending();                        // half-close: FIN, we still read
  void reset();                                 // RST: bytes under way are thrown away
  void close() { socket_.reset(); }

 private:
  Fd socket_;
  milliseconds limit_;  // of each wait
};

// Waits until the socket is readable or writable (POLLIN, POLLOUT); false at `limit`.
bool wait_for(const Fd& socket, short events, milliseconds limit);

// Makes close send RST instead of FIN. Source: socket(7), SO_LINGER.
void reset_on_close(const Fd& socket);
