// Faults that a server cannot make by itself: calls that fail, move too little, or
// meet tiny buffers. Each skips the check where it cannot be had.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/testing/server_process.h"

// The server's command under strace, which makes system calls fail in any program.
// "read:error=EINTR:when=20+3" is every third read of each thread from its 20th on:
// those before it may be the loader's. Source: strace(1), -e inject.
Command under_strace(const Command& command, const std::vector<std::string>& injections);

// Signals the server's first thread. Of a server with several threads any other may take
// a signal, and most likely does while strace holds the first.
void signal_first_thread(const ServerProcess& server, int number);

// Writes down the system calls that a server makes, by strace ("epoll_ctl,close").
class CallLog {
 public:
  CallLog(const Command& command, const std::string& calls);
  ~CallLog();
  CallLog(const CallLog&) = delete;
  CallLog& operator=(const CallLog&) = delete;

  const Command& command() const { return command_; }  // to be started
  // The calls so far, a line each, as strace writes them: "close(7) = 0".
  std::vector<std::string> lines() const;
  std::size_t count(const std::string& call) const;  // of the lines, those of this call

 private:
  std::string path_;
  Command command_;
};

// The server's command under libfiu, which makes calls fail, or move less than they
// could, that the program makes through the C library. `points` are fiu-run commands.
// Source: fiu-run(1).
Command under_fiu(const Command& command, const std::vector<std::string>& points);

// Skips unless libfiu is in this process. A program that is linked statically, or
// makes its own system calls as Go's do, never meets the faults, and would pass for
// nothing.
void need_libfiu_inside(ServerProcess& server);

// Runs `body` in a network of its own, in which every send buffer has so many bytes.
// Needs CAP_SYS_ADMIN, which unshare(1) -r gives to anybody. Source: network_namespaces(7), tcp(7).
void with_tiny_send_buffers(int bytes, const std::function<void()>& body);
