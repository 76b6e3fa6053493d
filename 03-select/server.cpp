// 03-select: an echo server with one thread for all its connections.
//
// The thread blocks in one call only: select waits for all descriptors at once and
// reports which are ready. In 02 the stack of a thread remembered how far a client's
// bytes had come; here a struct does. A handler never waits: it does what can be done
// now, and returns what it is still interested in.

#include <sys/select.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr std::size_t kTurn = 16 * 1024;          // bytes read in one turn of a connection
constexpr std::size_t kAccepts = 64;              // connections accepted in one turn
constexpr std::size_t kPendingLimit = 64 * 1024;  // a client that does not read is not read from
constexpr milliseconds kTick{200};                // from one tick to the next
constexpr milliseconds kGrace{5000};              // limit of shutdown, from SIGTERM on

// What a connection waits for next. If neither, it is finished: close it.
struct Interest {
  bool read = false;
  bool write = false;
  bool operator==(const Interest&) const = default;
};
constexpr Interest kNone{};
constexpr Interest kRead{.read = true};

struct Connection {
  Fd socket;                   // empty if no connection has this number
  std::string pending;         // read, and not yet written
  bool peer_finished = false;  // it sends no more, but may still read
  bool quiet = false;          // no event since the last tick

  Interest interest() const {
    return {.read = !peer_finished && pending.size() < kPendingLimit, .write = !pending.empty()};
  }
};

bool failed(const IoResult& result) {
  return result.status == Io::peer_gone || result.status == Io::out_of_resources;
}

// Writes what the socket takes now, and keeps the rest. Once bytes are pending, new ones
// are appended to them: an echo has to keep the order.
Interest echo(Connection& connection, std::string_view data) {
  if (connection.pending.empty()) {
    const IoResult out = write_some(connection.socket, data);
    if (failed(out)) return kNone;
    data.remove_prefix(out.size);
  }
  connection.pending += data;
  return connection.interest();
}

// Reads once, however much there is: a client that sends without end must not starve the
// others. End of file means that the peer has finished sending. The connection has
// finished when nothing is pending either.
Interest on_readable(Connection& connection) {
  std::array<char, kTurn> buffer;
  const std::size_t room = kPendingLimit - connection.pending.size();
  const IoResult in = read_some(connection.socket, std::span(buffer).first(std::min(kTurn, room)));
  if (failed(in)) return kNone;
  if (in.status == Io::ok) return echo(connection, {buffer.data(), in.size});
  if (in.status == Io::end) connection.peer_finished = true;
  return connection.interest();
}

Interest on_writable(Connection& connection) {
  const IoResult out = write_some(connection.socket, connection.pending);
  if (failed(out)) return kNone;
  connection.pending.erase(0, out.size);
  if (connection.pending.empty()) connection.pending.shrink_to_fit();  // no buffer while idle
  return connection.interest();
}

// The self-pipe: at a signal its read end becomes readable, so the loop can wait for it.
// To write a byte is about all that a handler may do, see signal-safety(7). If the
// pipe is full, it is readable already.
int stop_pipe = -1;

void on_signal(int) {
  const int error = errno;
  [[maybe_unused]] const auto written = ::write(stop_pipe, "!", 1);
  errno = error;
}

class Server {
 public:
  explicit Server(Fd listener) : listener_(std::move(listener)) {
    for (const Fd* fd : {&listener_, &stop_.read_end}) {
      if (!set_interest(fd->get(), kNone, kRead)) throw StartupError("too many open descriptors");
    }
    stop_pipe = stop_.write_end.get();
    for (const int number : unblock_stop_signals()) std::signal(number, on_signal);
  }

  void run() {
    announce(listener_);
    while (listener_ || open_ > 0) {
      wait();
      if (next_tick_ && Clock::now() >= *next_tick_) on_tick();
      if (stopping_ && accepting_) accept_ready(1);  // is a client left in the backlog?
    }
    if (refused_ > 0) log_line("{} connections were refused", refused_);
  }

 private:
  // Sets what `fd` is watched for. Returns false if it cannot be watched: an fd_set is an
  // array of FD_SETSIZE bits, and FD_SET does not check that `fd` lies within it.
  bool set_interest(int fd, Interest, Interest now) {
    if (fd >= FD_SETSIZE) return false;
    if (now.read) FD_SET(fd, &reading_);
    if (!now.read) FD_CLR(fd, &reading_);
    if (now.write) FD_SET(fd, &writing_);
    if (!now.write) FD_CLR(fd, &writing_);
    highest_ = std::max(highest_, fd);
    return true;
  }

  // Waits until a descriptor is ready or a tick is due, and handles what is ready. Each
  // call passes both sets again, and select overwrites them with its answer: hence the
  // copies. To find the ready descriptors, every bit is tested.
  void wait() {
    fd_set readable = reading_;
    fd_set writable = writing_;
    timeval left{};
    if (next_tick_) {
      const auto us = std::chrono::ceil<microseconds>(*next_tick_ - Clock::now()).count();
      left.tv_usec = static_cast<suseconds_t>(std::max<decltype(us)>(0, us));
    }
    const int count =
        ::select(highest_ + 1, &readable, &writable, nullptr, next_tick_ ? &left : nullptr);
    if (count < 0 && errno != EINTR) {  // such as ENOMEM: it allocates its tables
      if (may_say_()) log_line("cannot select: {}; trying again", error_text(errno));
      std::this_thread::sleep_for(milliseconds(10));
    }
    for (int fd = 0; count > 0 && fd <= highest_; ++fd) {
      const bool can_read = FD_ISSET(fd, &readable);
      const bool can_write = FD_ISSET(fd, &writable);
      if (can_read || can_write) handle(fd, can_read, can_write);
    }
  }

  // Calls the handlers, and applies the interest that they return.
  void handle(int fd, bool readable, bool writable) {
    if (fd == listener_.get()) return accept_ready(kAccepts);
    if (fd == stop_.read_end.get()) return begin_stop();
    Connection& connection = slot(fd);
    const Interest was = connection.interest();
    Interest now = was;
    try {
      if (readable && now.read) now = on_readable(connection);
      if (writable && now.write) now = on_writable(connection);
    } catch (const std::bad_alloc&) {
      now = kNone;  // no memory for this client's bytes: only its connection ends
    }
    connection.quiet = false;
    if (now == kNone) return close(connection, was);
    if (now != was) set_interest(fd, was, now);
  }

  void accept_ready(std::size_t most) {
    for (std::size_t i = 0; i < most; ++i) {
      Accepted next = accept_from(listener_, Mode::non_blocking);
      if (next.status == Io::would_block) {
        if (stopping_) stop_listening();
        return;
      }
      if (next.status == Io::out_of_resources) return pause_accepting(next.error);
      try {
        if (!admit(std::move(next.connection))) return;
      } catch (const std::bad_alloc&) {
        return pause_accepting(ENOMEM);
      }
    }
  }

  // Returns false if the connection cannot be watched; it is then closed.
  bool admit(Fd socket) {
    const int fd = socket.get();
    Connection& connection = slot(fd);
    if (!set_interest(fd, kNone, kRead)) {
      if (refused_++ == 0) log_line("cannot watch descriptor {}: refused, as others will be", fd);
      return false;
    }
    connection.socket = std::move(socket);
    ++open_;
    return true;
  }

  // Without a free descriptor accept fails, yet the listener stays readable: a loop that
  // tried again at once would spin. So the listener is not watched until a connection
  // closes, or until the next tick, as the whole system may be out of descriptors.
  void pause_accepting(int error) {
    if (may_say_())
      log_line("cannot accept: {}; existing connections are served", error_text(error));
    set_interest(listener_.get(), kRead, kNone);
    accepting_ = false;
    tick_later();
  }

  void resume_accepting() {
    if (accepting_ || !listener_) return;
    accepting_ = set_interest(listener_.get(), kNone, kRead);
    if (!accepting_) tick_later();
  }

  void close(Connection& connection, Interest was) {
    set_interest(connection.socket.get(), was, kNone);
    connection = Connection{};
    --open_;
    resume_accepting();
  }

  Connection& slot(int fd) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= connections_.size()) connections_.resize(index + 1);
    return connections_[index];
  }

  // The clients in the backlog are still served: they are connected, as far as they know.
  void begin_stop() {
    set_interest(stop_.read_end.get(), kRead, kNone);
    stopping_ = true;
    grace_ends_ = Clock::now() + kGrace;
    tick_later();
    if (accepting_) accept_ready(kAccepts);
  }

  // Called when the backlog is empty. While descriptors are short, it empties only as
  // connections close; then, or if clients keep coming, the grace is the limit.
  void stop_listening() {
    if (accepting_) set_interest(listener_.get(), kRead, kNone);
    accepting_ = false;
    listener_.reset();
  }

  // Checks what no event reports: whether descriptors are free again and, at a stop, which
  // connections can be closed. Bytes may be on their way to a queue that is empty now, so a
  // connection is closed only after a full tick without activity.
  void on_tick() {
    next_tick_.reset();
    resume_accepting();
    if (!stopping_) return;
    const bool give_up = Clock::now() + kTick > grace_ends_;  // the next tick would be too late
    if (give_up) stop_listening();
    for (Connection& connection : connections_) {
      if (!connection.socket) continue;
      const auto [in, out] = underway(connection.socket);
      const bool done = connection.quiet && connection.pending.empty() && !in && !out;
      connection.quiet = true;
      if (done || give_up) close(connection, connection.interest());
    }
    tick_later();
  }

  // A tick that is due stays due: a pause must not put off the end of the grace.
  void tick_later() {
    if (!next_tick_) next_tick_ = Clock::now() + kTick;
  }

  Fd listener_;
  Pipe stop_ = make_pipe();
  fd_set reading_{};  // what select is to watch
  fd_set writing_{};
  int highest_ = -1;                     // descriptor that was ever in either
  std::vector<Connection> connections_;  // by descriptor
  std::size_t open_ = 0;
  std::size_t refused_ = 0;
  bool accepting_ = true;
  bool stopping_ = false;
  Clock::time_point grace_ends_;
  std::optional<Clock::time_point> next_tick_;
  OncePerSecond may_say_;
};

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options("An echo server with one thread, on select.");
  options.add(endpoint);
  options.parse(argc, argv);

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    raise_descriptor_limit();
    Server(listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking)).run();
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
