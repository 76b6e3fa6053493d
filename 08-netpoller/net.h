// What a goroutine does with the network: accept, read, write_all; and sleep_for, yield
// and blocking. Each is co_awaited, and looks like a call that blocks.
// Go: net/net.go, internal/poll/fd_unix.go, time/sleep.go.
#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <future>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "common/socket/options.h"
#include "common/socket/socket.h"
#include "netpoll.h"
#include "scheduler.h"

// A buffer that is borrowed: when this goes, the worker at hand gets it. So a silent connection
// has no buffer.
struct GiveBack {
  void operator()(char* buffer) const;
};
using Buffer = std::unique_ptr<char[], GiveBack>;

struct Received {
  Status status;
  Buffer buffer;
  std::size_t size;

  std::string_view bytes() const { return {buffer.get(), size}; }
};

class Read : public PollOperation {
 public:
  explicit Read(const Hold& hold) : PollOperation(hold, Direction::read) {}
  Received await_resume() { return {status_, std::move(buffer_), size_}; }

 private:
  Io call() override;

  Buffer buffer_;
  std::size_t size_ = 0;
};

class WriteAll : public PollOperation {
 public:
  WriteAll(const Hold& hold, std::string_view data)
      : PollOperation(hold, Direction::write), left_(data) {}
  Status await_resume() const { return status_; }

 private:
  Io call() override;

  std::string_view left_;
};

// A connection. It is closed when this goes, at the latest.
class Conn {
 public:
  Conn() = default;
  explicit Conn(PollDesc* desc) : hold_(desc) {}
  explicit operator bool() const { return hold_.desc() != nullptr; }  // it is not closed

  // co_await read(): a Received, with 16 KiB at most.
  Read read() { return Read(hold_); }
  // co_await write_all(data): the Status, when the socket has taken all of it. `data`
  // has to stay until then.
  WriteAll write_all(std::string_view data) { return WriteAll(hold_, data); }

  // Any thread may call these, as long as the Conn is there. Operations that are under
  // way are released: with Status::closed, or when the deadline passes, Status::timed_out.
  // kNever: there is none any more.
  void close() { hold_.close(); }
  void set_read_deadline(Clock::time_point when) { hold_.set_deadline(Direction::read, when); }
  void set_write_deadline(Clock::time_point when) { hold_.set_deadline(Direction::write, when); }

  Underway underway() const;  // whether the kernel holds bytes of it

 private:
  Hold hold_;
};

struct AcceptResult {
  Status status;
  Conn conn;
  int error;  // the errno behind out_of_resources
};

struct Accept : public PollOperation {
  explicit Accept(const Hold& hold) : PollOperation(hold, Direction::read) {}
  Io call() override;
  AcceptResult await_resume() { return {status_, Conn(accepted_), error_}; }

 private:
  PollDesc* accepted_ = nullptr;
  int error_ = 0;
};

class Listener {
 public:
  // Throws StartupError: the port is in use, forbidden, or not ours.
  Listener(Scheduler& scheduler, const Endpoint& endpoint);

  // co_await accept(): an AcceptResult
  Accept accept() const { return Accept(hold_); }
  Conn accept_now() const;         // one from the backlog; empty: there is none to be had
  void close() { hold_.close(); }  // any thread; releases all that accept
  void set_deadline(Clock::time_point when) { hold_.set_deadline(Direction::read, when); }
  const Fd& socket() const { return hold_.desc()->fd(); }  // until it is closed

 private:
  Hold hold_;
};

// co_await sleep_for(20ms)
class Sleep : public Operation, private Timer {
 public:
  explicit Sleep(std::chrono::milliseconds duration) : until_(Clock::now() + duration) {}
  bool attempt() override { return Clock::now() >= until_; }
  bool commit(Goroutine& goroutine) override;
  void await_resume() const {}

 private:
  Clock::time_point fire() override;

  const Clock::time_point until_;
  Scheduler* scheduler_ = nullptr;
  Goroutine* goroutine_ = nullptr;
};

inline Sleep sleep_for(std::chrono::milliseconds duration) { return Sleep(duration); }

// co_await yield(): lets others go first.
class Yield : public Operation {
 public:
  bool attempt() override { return std::exchange(had_its_turn_, true); }
  bool commit(Goroutine& goroutine) override;
  void await_resume() const {}

 private:
  bool had_its_turn_ = false;
};

inline Yield yield() { return {}; }

// co_await blocking(fn): has another thread call fn(), and returns what that returns, or
// throws what it throws. Go does it for every system call that blocks, unasked, by giving
// the thread's P to another thread (entersyscall and retake in runtime/proc.go).
class BlockingCall : public Operation {
 public:
  bool attempt() final { return std::exchange(submitted_, true); }
  bool commit(Goroutine& goroutine) final;

 protected:
  virtual void call() = 0;

  std::exception_ptr no_thread_;  // why it was not called

 private:
  bool submitted_ = false;
};

template <typename Function>
class Blocking : public BlockingCall {
 public:
  explicit Blocking(Function function) : task_(std::move(function)) {}

  auto await_resume() {
    if (no_thread_) std::rethrow_exception(no_thread_);
    return task_.get_future().get();
  }

 private:
  void call() override { task_(); }

  std::packaged_task<std::invoke_result_t<Function>()> task_;
};

template <typename Function>
Blocking<Function> blocking(Function function) {
  return Blocking<Function>(std::move(function));
}
