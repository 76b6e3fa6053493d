// Faults that a server cannot make by itself: calls that fail, move too little, or
// meet tiny buffers. Each skips the check where it is unavailable.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/testing/server_process.h"

// The server's command under strace, which makes system calls fail in any program.
// "read:error=EINTR:when=20+3" is every third read of each thread from its 20th on:
// those before it may be the loader's. Source: strace(1), -e inject.
Command under_strace(const Command& command, const std::vector<std::string>& injections);

// Signals the server's first thread. With several threads, another may take a signal that
// is sent to the process, and most likely does while strace holds the first.
void signal_first_thread(const ServerProcess& server, int number);

// Logs the named system calls of a server ("epoll_ctl,close"), by strace.
class CallLog {
 public:
  CallLog(const Command& command, const std::string& calls);
  ~CallLog();
  CallLog(const CallLog&) = delete;
  CallLog& operator=(const CallLog&) = delete;

  const Command& command() const { return command_; }  // start this one
  // The calls so far, a line each, as strace writes them: "close(7) = 0".
  std::vector<std::string> lines() const;
  std::size_t count(const std::string& call) const;  // lines of this call

 private:
  std::string path_;
  Command command_;
};

// The server's command under libfiu, which makes calls through the C library fail, or
// move less than they could. `points` are fiu-run commands.
// Source: fiu-run(1).
Command under_fiu(const Command& command, const std::vector<std::string>& points);

// Skips unless libfiu is in this process. A program that is linked statically, or
// makes its own system calls as Go's do, never meets the faults, and would pass
// untested.
void need_libfiu_inside(ServerProcess& server);

// Runs `body` in a network of its own, in which every send buffer has `bytes` bytes.
// Needs CAP_SYS_ADMIN, which unshare(1) -r gives anyone. Source: network_namespaces(7), tcp(7).
void with_tiny_send_buffers(int bytes, const std::function<void()>& body);
