// Listener: the socket that connections come from.
#pragma once

#include "common/socket/options.h"
#include "common/socket/socket.h"

class Listener {
 public:
  // Throws StartupError: the port is in use, forbidden, or not ours.
  explicit Listener(const Endpoint& endpoint)
      : socket_(listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking)) {}

  Accepted accept() { return accept_from(socket_, Mode::non_blocking); }
  void close() { socket_.reset(); }
  const Fd& socket() const { return socket_; }

 private:
  Fd socket_;
};
