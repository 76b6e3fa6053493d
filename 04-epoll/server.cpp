// 04-epoll: an echo server with one thread, for ten thousand connections and more.
//
// It is the server of 03, but the kernel keeps the list of watched descriptors. The
// server tells it only what changes, and it reports only what is ready. So the cost of
// a message does not depend on the number of silent connections.

#include <sys/epoll.h>

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
#include <system_error>
#include <utility>
#include <vector>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

namespace {

using Clock = std::chrono::steady_clock;
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
      if (!epoll_ || !set_interest(fd->get(), kNone, kRead))
        throw StartupError(fmt::format("no epoll: {}", error_text(errno)));
    }
    stop_pipe = stop_.write_end.get();
    for (const int number : unblock_stop_signals()) std::signal(number, on_signal);
  }

  void run() {
    announce(listener_);
    while (listener_ || open_ > 0) {
      wait();
      if (next_tick_ && Clock::now() >= *next_tick_) on_tick();
      closed_.clear();
      if (stopping_ && accepting_) accept_ready(1);  // is a client left in the backlog?
    }
    if (refused_ > 0) log_line("{} connections were refused", refused_);
  }

 private:
  // Sets what `fd` is watched for. Returns false if the kernel has no room for one more,
  // see epoll_ctl(2), ENOSPC. Take `fd` off the list before you close it: epoll watches the
  // open file, and a duplicate of the descriptor would keep that file open.
  bool set_interest(int fd, Interest was, Interest now) {
    const int change = was == kNone ? EPOLL_CTL_ADD : now == kNone ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    epoll_event event{};
    event.events = (now.read ? EPOLLIN : 0u) | (now.write ? EPOLLOUT : 0u);
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), change, fd, &event) == 0) return true;
    if (errno == ENOSPC || errno == ENOMEM) return false;
    throw std::system_error(errno, std::system_category(), "epoll_ctl");
  }

  // Waits until a descriptor is ready or a tick is due, and handles what is ready. Errors
  // and hang-ups are always reported; the next read or write returns the reason.
  void wait() {
    std::array<epoll_event, 128> events;
    int timeout = -1;
    if (next_tick_) {
      const auto ms = std::chrono::ceil<milliseconds>(*next_tick_ - Clock::now()).count();
      timeout = static_cast<int>(std::max<decltype(ms)>(0, ms));
    }
    const int count = ::epoll_wait(epoll_.get(), events.data(), std::size(events), timeout);
    if (count < 0 && errno != EINTR)
      throw std::system_error(errno, std::system_category(), "epoll_wait");
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      const bool error = event.events & (EPOLLERR | EPOLLHUP);
      handle(event.data.fd, error || event.events & EPOLLIN, error || event.events & EPOLLOUT);
    }
  }

  // Calls the handlers, and applies the interest that they return.
  void handle(int fd, bool readable, bool writable) {
    if (fd == listener_.get()) return accept_ready(kAccepts);
    if (fd == stop_.read_end.get()) return begin_stop();
    Connection& connection = slot(fd);
    if (!connection.socket) return;  // closed by an earlier event of this batch
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

  // The descriptor stays open until the batch is done. If its number were free, accept
  // could give it to a new connection, which later events of the batch are not about.
  void close(Connection& connection, Interest was) {
    set_interest(connection.socket.get(), was, kNone);
    closed_.push_back(std::move(connection.socket));
    connection = Connection{};
    --open_;
    resume_accepting();
  }

  Connection& slot(int fd) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= connections_.size()) {
      closed_.reserve(2 * index);  // so that closing all allocates nothing
      connections_.resize(2 * index);
    }
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
  Fd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
  std::vector<Connection> connections_;  // by descriptor
  std::vector<Fd> closed_;               // closed in this batch of events
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
  Options options("An echo server with one thread, on epoll.");
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
