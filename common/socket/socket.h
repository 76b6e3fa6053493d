// TCP sockets as the servers use them.
//
// Each call that a client or the kernel's state can make fail names its outcome
// in `Io`, so that a server decides by case and never by errno:
//
//   startup   listen_on throws StartupError: print it and exit
//   peer      Io::peer_gone: close that one connection, quietly
//   resource  Io::out_of_resources: serve existing connections, accept no new one
//             for now, and do not retry at once
//
// EINTR is not an outcome: accept, read and write are repeated.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "common/socket/address.h"
#include "common/socket/fd.h"

enum class Io {
  ok,                // done, at least in part
  would_block,       // nothing can be done now (non-blocking, or SO_RCVTIMEO has passed)
  end,               // read: the peer has finished sending; it may still be reading
  peer_gone,         // reset, timed out, unreachable: the connection is dead
  out_of_resources,  // no descriptors or no memory, here or in the whole system
};

struct IoResult {
  Io status;
  std::size_t size;  // bytes moved; 0 unless ok
};

struct Accepted {
  Io status;      // ok, would_block or out_of_resources
  Fd connection;  // empty unless ok
  int error;      // the errno behind out_of_resources
};

enum class Mode { blocking, non_blocking };

// A socket that listens on `address`, with the longest backlog the system allows.
// SO_REUSEADDR is set (a restarted server need not wait for TIME_WAIT to pass),
// close-on-exec too. Connections inherit two options from it: TCP_NODELAY, small replies
// leave at once; and SO_OOBINLINE, an urgent byte is read in its place (a close would find
// it unread, and reset the connection, and what is on its way to the peer would be lost).
// And keep-alive, with Go's times: a connection on which nothing has come for 15 s is probed
// every 15 s, and has failed when 9 probes in a row are not answered. So a peer whose machine
// has vanished is gone after 150 s. It is no idle timeout: the kernel of a silent peer answers.
// Throws StartupError: the port is in use, forbidden, or not ours.
// Source: tcp(7), listen(2), RFC 6093; Go's net/dial.go.
Fd listen_on(const Address& address, Mode mode = Mode::blocking);

// Takes one connection that is ready off the listener's queue; `mode` is that of
// the new socket. A connection that died while it was queued (ECONNABORTED and
// the network errors of accept(2)) is not an outcome either: the next one is taken.
// Throws std::system_error if `listener` is no listening socket, which is a bug.
Accepted accept_from(const Fd& listener, Mode mode = Mode::blocking);

// Starts a connection to `peer` on a non-blocking socket, from the address `source`
// if one is given (its port is chosen by the kernel). It is made, or has failed,
// when the socket is writable: connect_error then says which (0, or an errno).
// Throws std::system_error when it fails at once. Source: connect(2).
Fd connect_to(const Address& peer, const Address* source = nullptr);
int connect_error(const Fd& socket);

// Reads what is there, at most buffer.size() bytes: ok, would_block, end,
// peer_gone or out_of_resources. Source: read(2).
IoResult read_some(const Fd& socket, std::span<char> buffer);

// Writes as much of `data` as the socket takes, which may be less than all:
// ok, would_block, peer_gone or out_of_resources. Needs ignore_sigpipe().
// Source: write(2).
IoResult write_some(const Fd& socket, std::string_view data);

// What the kernel holds of a connection, by direction. `in`: bytes that have come and are
// not read. `out`: bytes that were written and that the peer's kernel has not acknowledged.
// After a close the kernel goes on sending these, but if the peer sends anything more it
// answers with a reset, and they are lost. `out` is false where the system does not tell.
// Source: tcp(7) on SIOCOUTQ, RFC 1122 4.2.2.13.
struct Underway {
  bool in;
  bool out;
};
Underway underway(const Fd& socket);

// Throws std::system_error. Source: fcntl(2).
void set_non_blocking(const Fd& fd);

// A pipe, both ends non-blocking and close-on-exec: what a signal handler or
// another thread writes to in order to wake a loop that waits for `read_end`.
struct Pipe {
  Fd read_end;
  Fd write_end;
};
Pipe make_pipe();
