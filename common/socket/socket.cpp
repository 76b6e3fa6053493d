#include "common/socket/socket.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "common/socket/process.h"

namespace {

[[noreturn]] void throw_errno(const char* call) {
  throw std::system_error(errno, std::system_category(), call);
}

void set_close_on_exec(const Fd& fd) {
  if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) throw_errno("fcntl(FD_CLOEXEC)");
}

void set_option(const Fd& socket, int level, int option, const char* name, int value = 1) {
  if (::setsockopt(socket.get(), level, option, &value, sizeof(value)) != 0) throw_errno(name);
}

// A TCP socket, close-on-exec: a program that the server starts does not keep
// its connections open.
Fd tcp_socket(int family, Mode mode) {
  Fd fd(::socket(family, SOCK_STREAM, 0));
  if (!fd) throw_errno("socket");
  set_close_on_exec(fd);
  if (mode == Mode::non_blocking) set_non_blocking(fd);
  return fd;
}

constexpr int kKeepAlive = 15;  // seconds: before the first probe, and between two
constexpr int kProbes = 9;

// For the listener, as connections inherit it. Where a system has no such times (OpenBSD),
// its own hold.
void keep_alive(const Fd& listener) {
  set_option(listener, SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE");
#ifdef TCP_KEEPIDLE
  set_option(listener, IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE", kKeepAlive);
#endif
#ifdef TCP_KEEPINTVL
  set_option(listener, IPPROTO_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL", kKeepAlive);
  set_option(listener, IPPROTO_TCP, TCP_KEEPCNT, "TCP_KEEPCNT", kProbes);
#endif
}

int accept_once(const Fd& listener, Mode mode) {
#if defined(__APPLE__)
  // No accept4; and a new socket takes O_NONBLOCK from its listener, as on all BSDs.
  Fd fd(::accept(listener.get(), nullptr, nullptr));
  if (!fd) return -1;
  const int flags = mode == Mode::non_blocking ? O_NONBLOCK : 0;
  if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0 || ::fcntl(fd.get(), F_SETFL, flags) != 0)
    return -1;
  // The one option that is not inherited. It may fail: the peer can be gone already.
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPALIVE, &kKeepAlive, sizeof(kKeepAlive));
  return fd.release();
#else
  const int flags = SOCK_CLOEXEC | (mode == Mode::non_blocking ? SOCK_NONBLOCK : 0);
  return ::accept4(listener.get(), nullptr, nullptr, flags);
#endif
}

// Whether an errno of accept is about the connection at the head of the backlog, and not
// about this process. Then the next connection is taken.
bool died_in_queue(int error) {
  switch (error) {
    case ECONNABORTED:
    case ECONNRESET:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
    case ENOPROTOOPT:
    case EPROTO:
    case ETIMEDOUT:
#ifdef ENONET
    case ENONET:
#endif
      return true;
    default: return false;
  }
}

// The outcome behind the errno of a read or a write.
Io outcome_of(int error, const char* call, const Fd& socket) {
  if (error == EAGAIN || error == EWOULDBLOCK) return Io::would_block;
  switch (error) {
    case ENOBUFS:
    case ENOMEM: return Io::out_of_resources;
    case ECONNABORTED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETRESET:
    case ENETUNREACH:
    case ENOTCONN:
    case EPIPE:
    case EPROTOTYPE:  // macOS: a write while the connection is being taken down
    case ETIMEDOUT: return Io::peer_gone;
    default: break;
  }
  // EBADF, EFAULT, EINVAL: a bug of this program. It ends this connection, and is logged.
  static OncePerSecond may_say;
  if (may_say()) log_line("{} on descriptor {}: {}", call, socket.get(), error_text(error));
  return Io::peer_gone;
}

}  // namespace

Fd listen_on(const Address& address, Mode mode) {
  try {
    Fd fd = tcp_socket(address.family(), mode);
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR");
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");
    set_option(fd, SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE");
    keep_alive(fd);
    if (::bind(fd.get(), address.get(), address.size) != 0) throw_errno("bind");
    // Every kernel cuts a backlog that is too long to its own maximum
    // (Linux: net.core.somaxconn, the BSDs: kern.ipc.soacceptqueue).
    if (::listen(fd.get(), std::numeric_limits<int>::max()) != 0) throw_errno("listen");
    return fd;
  } catch (const std::system_error& error) {
    throw StartupError(
        fmt::format("cannot listen on {}: {}", to_text(address), error.code().message()));
  }
}

Accepted accept_from(const Fd& listener, Mode mode) {
  for (;;) {
    Fd connection(accept_once(listener, mode));
    if (connection) return {Io::ok, std::move(connection), 0};

    const int error = errno;
    if (error == EINTR || died_in_queue(error)) continue;
    if (error == EAGAIN || error == EWOULDBLOCK) return {Io::would_block, Fd(), 0};
    switch (error) {
      case EBADF:
      case EFAULT:
      case EINVAL:
      case ENOTSOCK: throw std::system_error(error, std::system_category(), "accept");
      default:  // EMFILE, ENFILE, ENOBUFS, ENOMEM; EPERM, if a firewall forbids it for now
        return {Io::out_of_resources, Fd(), error};
    }
  }
}

Fd connect_to(const Address& peer, const Address* source) {
  Fd fd = tcp_socket(peer.family(), Mode::non_blocking);
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");
  if (source != nullptr) {
#ifdef IP_BIND_ADDRESS_NO_PORT
    // Without it bind reserves a port at once, for one socket of this address only.
    set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT");
#endif
    if (::bind(fd.get(), source->get(), source->size) != 0) throw_errno("bind");
  }
  // EINTR: the kernel goes on connecting, as after EINPROGRESS.
  if (::connect(fd.get(), peer.get(), peer.size) != 0 && errno != EINPROGRESS && errno != EINTR) {
    throw_errno("connect");
  }
  return fd;
}

int connect_error(const Fd& socket) {
  int error = 0;
  socklen_t size = sizeof(error);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) throw_errno("SO_ERROR");
  return error;
}

IoResult read_some(const Fd& socket, std::span<char> buffer) {
  for (;;) {
    const ssize_t n = ::read(socket.get(), buffer.data(), buffer.size());
    if (n > 0) return {Io::ok, static_cast<std::size_t>(n)};
    if (n == 0) return {Io::end, 0};
    if (errno != EINTR) return {outcome_of(errno, "read", socket), 0};
  }
}

IoResult write_some(const Fd& socket, std::string_view data) {
  for (;;) {
    const ssize_t n = ::write(socket.get(), data.data(), data.size());
    if (n >= 0) return {Io::ok, static_cast<std::size_t>(n)};
    if (errno != EINTR) return {outcome_of(errno, "write", socket), 0};
  }
}

Underway underway(const Fd& socket) {
  char byte = 0;  // FIONREAD stops at an urgent byte that is not inline
  const bool in = ::recv(socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  int out = 0;
#if defined(__linux__)
  ::ioctl(socket.get(), TIOCOUTQ, &out);
#elif defined(SO_NWRITE)
  socklen_t size = sizeof(out);
  ::getsockopt(socket.get(), SOL_SOCKET, SO_NWRITE, &out, &size);
#elif defined(FIONWRITE)
  ::ioctl(socket.get(), FIONWRITE, &out);
#endif
  return {.in = in, .out = out > 0};
}

void set_non_blocking(const Fd& fd) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    throw_errno("fcntl(O_NONBLOCK)");
}

Pipe make_pipe() {
  int ends[2] = {};
  if (::pipe(ends) != 0) throw_errno("pipe");
  Pipe pipe{Fd(ends[0]), Fd(ends[1])};
  for (const Fd* end : {&pipe.read_end, &pipe.write_end}) {
    set_close_on_exec(*end);
    set_non_blocking(*end);
  }
  return pipe;
}
