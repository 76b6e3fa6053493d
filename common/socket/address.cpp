#include "common/socket/address.h"

#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "common/socket/process.h"

Address resolve(const std::string& host, std::uint16_t port) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0)
    throw StartupError(fmt::format("cannot resolve host '{}': {}", host, ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);

  Address address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  return address;
}

Address local_address(const Fd& socket) {
  Address address;
  address.size = sizeof(address.storage);
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size) !=
      0) {
    throw std::system_error(errno, std::system_category(), "getsockname");
  }
  return address;
}

std::string to_text(const Address& address) {
  char host[NI_MAXHOST] = {};
  char port[NI_MAXSERV] = {};
  const int error = ::getnameinfo(address.get(), address.size, host, sizeof(host), port,
                                  sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
  if (error != 0) return fmt::format("unknown address: {}", ::gai_strerror(error));
  if (address.family() == AF_INET6) return fmt::format("[{}]:{}", host, port);
  return fmt::format("{}:{}", host, port);
}
