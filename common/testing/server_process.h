// A server under test: a process of its own, started with any command, watched
// from outside, and ended for certain.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/testing/outcome.h"

struct Command {
  // The program and its arguments. "{port}" in an argument becomes a free port;
  // without it "--port 0" is appended, and the server's first line on stdout must
  // say where it listens ("listening on 127.0.0.1:12345").
  std::vector<std::string> argv = {};
  std::size_t descriptor_limit = 0;           // of the server, hard and soft; 0: as ours
  std::size_t soft_descriptor_limit = 0;      // soft only; 0: as descriptor_limit
  std::vector<std::string> environment = {};  // "NAME=value", added to ours
  std::size_t inherited = 0;                  // unused descriptors that are open when it starts
  // By default no signal is blocked or ignored, whatever this process does.
  std::vector<int> blocked_signals = {};
  std::vector<int> ignored_signals = {};
  // Any of 0, 1, 2. With stdout closed, argv needs a "{port}": there is no line to read.
  std::vector<int> closed_descriptors = {};
  std::size_t wrapped_in = 0;  // how many arguments of argv are a wrapper's

  // This command with more flags, or run by another program ("strace -f …").
  Command with(const std::vector<std::string>& flags) const;
  Command under(const std::vector<std::string>& wrapper) const;
  bool port_is_given() const;  // it has a "{port}"
  std::string name() const;    // the server and its flags, without the wrapper
};

struct Exit {
  bool signalled;
  int code;  // the exit code, or the signal
  std::string text() const;
};
Exit exit_of(int status);  // as waitpid gives it

// Used by the process and those it started, from Linux's /proc and CPU clocks.
struct Usage {
  std::chrono::nanoseconds cpu{0};  // user and system, of all threads
  // Parts of cpu, which the kernel finds by sampling, unless it is built otherwise.
  std::chrono::nanoseconds user{0};
  std::chrono::nanoseconds system{0};
  std::size_t resident = 0;       // bytes
  std::size_t address_space = 0;  // bytes
  std::size_t page_tables = 0;    // bytes, of the kernel's memory
  std::size_t threads = 0;
  std::size_t descriptors = 0;
};

// Runs a program that is expected to end by itself, within `limit`.
struct Run {
  Exit exit;
  std::string output;
  std::string errors;
};
Run run_to_end(const Command& command, milliseconds limit = patience);

struct NotListening : Failure {
  using Failure::Failure;
};

class ServerProcess {
 public:
  // Starts it and waits until it listens. Throws NotListening if it does not.
  explicit ServerProcess(const Command& command);
  // Kills it and what it started, if they still run.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  const Address& address() const { return address_; }
  pid_t pid() const { return pid_; }

  // Sends a signal to it, and to nothing else: a process that ended is not signalled.
  void signal(int number);

  // Suspends it until thaw. What clients do meanwhile then arrives all at once.
  void freeze();
  void thaw();

  // Waits for its exit; returns nullopt if it runs longer than `limit`.
  std::optional<Exit> wait_for_exit(milliseconds limit);
  bool running() { return !wait_for_exit(0ms); }

  std::string output() const;  // what it wrote to stdout so far
  std::string errors() const;  // and to stderr

  // What it uses now; throws Skipped where there is no /proc.
  Usage usage() const;
  // How often its threads have been taken off a core, waiting or not; 0 without /proc.
  std::size_t context_switches() const;
  // The share of one core that it uses in the next `window`, in percent.
  double cpu_percent(milliseconds window) const;

 private:
  friend Run run_to_end(const Command& command, milliseconds limit);
  ServerProcess();  // not started
  void start(const Command& command, std::vector<std::string> arguments);

  pid_t pid_ = -1;
  std::optional<Exit> exit_;
  Fd stdout_;
  Fd stderr_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> guard_;
  Address address_;
};

// Whether a program of that name is on the PATH.
bool is_installed(const std::string& program);

// After adopt_orphans, a process whose parent ends becomes a child of this one, so that
// end_children can kill all that a server left behind, in any session. end_children returns
// false if that fails. Linux only (prctl(2), PR_SET_CHILD_SUBREAPER): elsewhere both do nothing,
// and a process that left the server's group stays.
void adopt_orphans();
bool end_children();
