// Where a socket listens, or what it is connected to: an IPv4 or IPv6 address and a port.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "common/socket/fd.h"

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

// The address of `host`, an IPv4 literal ("127.0.0.1"), an IPv6 literal ("::1")
// or a name ("localhost"; its first address is taken), with `port` in host order.
// Throws StartupError when the name has no address. Source: getaddrinfo(3).
Address resolve(const std::string& host, std::uint16_t port);

// The address that the kernel bound the socket to; after a bind to port 0 it
// tells the port. Throws std::system_error. Source: getsockname(2).
Address local_address(const Fd& socket);

// "127.0.0.1:8080" or "[::1]:8080" (RFC 3986, section 3.2.2).
std::string to_text(const Address& address);
