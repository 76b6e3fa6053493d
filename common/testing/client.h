// One client, for checks that say what happens step by step. Nothing it waits for
// is waited for longer than its limit; what did not happen is a Failure.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"

class Client {
 public:
  // Connected when it returns: by the kernel, which says nothing of `accept`.
  explicit Client(const Address& server, milliseconds limit = patience);

  void send(std::string_view data);
  std::string receive(std::size_t size);  // exactly so many bytes
  std::string receive_until_end();

  // Sends the text and receives the same; returns how long that took, in ms.
  double echo(std::string_view text);

  // Sends as much of `data` as goes without the other side reading on: until it has
  // gone altogether, or nothing has moved for `still`. Returns how much went.
  std::size_t send_what_fits(std::string_view data, milliseconds still = 300ms);

  bool hears_within(milliseconds limit) const;  // bytes or the end have arrived
  bool is_closed_within(milliseconds limit);    // the end, or a reset, has arrived
  void limit_receive_queue(int bytes);          // of our kernel; it takes up to twice as many
  void finish_sending();                        // half-close: FIN, we still read
  void reset();                                 // RST: what is under way is thrown away
  void close() { socket_.reset(); }

 private:
  Fd socket_;
  milliseconds limit_;  // of each wait
};

// Waits until the socket is readable or writable (POLLIN, POLLOUT); false at `limit`.
bool wait_for(const Fd& socket, short events, milliseconds limit);

// Makes close send RST instead of FIN. Source: socket(7), SO_LINGER.
void reset_on_close(const Fd& socket);
