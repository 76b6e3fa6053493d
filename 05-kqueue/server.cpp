// 05-kqueue: an echo server with one thread, on macOS and the BSDs.
//
// It is the server of 04, but each direction has a filter of its own, and the call that
// waits also passes the changes. Signals and timers are filters too, so the self-pipe
// and the computed timeouts are gone.

#include <sys/types.h>  // OpenBSD wants it first

#include <sys/event.h>

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

#ifdef __NetBSD__
using Count = std::size_t;  // kevent's type for the lengths of both lists
#else
using Count = int;
#endif

constexpr std::size_t kTurn = 16 * 1024;          // bytes read in one turn of a connection
constexpr std::size_t kPendingLimit = 64 * 1024;  // a client that does not read is not read from
constexpr milliseconds kTick{200};                // from one tick to the next
constexpr milliseconds kGrace{5000};              // limit of shutdown, from SIGTERM on
constexpr milliseconds kTimer{100};               // from one timer event to the next
constexpr std::size_t kBatch = 128;               // events from one wait

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

// A signal reaches its filter and its handler. Without a handler the default action would
// end the program. stop_asked matters only if the signal came before its filter existed.
volatile std::sig_atomic_t stop_asked = 0;

void on_signal(int) { stop_asked = 1; }

class Server {
 public:
  explicit Server(Fd listener) : listener_(std::move(listener)) {
    if (!kqueue_) throw StartupError(fmt::format("no kqueue: {}", error_text(errno)));
    set_interest(listener_.get(), kNone, kRead);
    for (const int number : unblock_stop_signals()) {
      std::signal(number, on_signal);
      change(number, EVFILT_SIGNAL, EV_ADD);
    }
    change(0, EVFILT_TIMER, EV_ADD, static_cast<int>(kTimer.count()));
    const auto count = static_cast<Count>(changes_.size());
    if (::kevent(kqueue_.get(), changes_.data(), count, nullptr, 0, nullptr) < 0)
      throw StartupError(fmt::format("no kqueue: {}", error_text(errno)));
    changes_.clear();
  }

  void run() {
    announce(listener_);
    if (stop_asked) begin_stop();
    while (listener_ || open_ > 0) {
      wait();
      if (next_tick_ && Clock::now() >= *next_tick_) on_tick();
      if (stopping_ && accepting_ && closed_.empty()) accept_ready();
    }
  }

 private:
  // Sets what `fd` is watched for: it has a filter for each direction of interest, and no
  // other. The next wait makes the change, before it reports any event.
  void set_interest(int fd, Interest was, Interest now) {
    if (was.read != now.read) change(fd, EVFILT_READ, now.read ? EV_ADD : EV_DELETE);
    if (was.write != now.write) change(fd, EVFILT_WRITE, now.write ? EV_ADD : EV_DELETE);
  }

  void change(int what, short filter, unsigned short flags, int data = 0) {
    struct kevent event {};
    EV_SET(&event, what, filter, flags, 0, data, nullptr);
    changes_.push_back(event);
  }

  // Passes the changes, waits for events, and handles them. EV_EOF is ignored: there may
  // be bytes before the end of file, and the read after the last byte returns 0.
  void wait() {
    std::array<struct kevent, kBatch> events;
    const timespec at_once{};
    const int count =
        ::kevent(kqueue_.get(), changes_.data(), static_cast<Count>(changes_.size()), events.data(),
                 static_cast<Count>(events.size()), closed_.empty() ? nullptr : &at_once);
    if (count < 0 && errno != EINTR)
      throw std::system_error(errno, std::system_category(), "kevent");
    changes_.clear();  // applied, even if a signal ended the wait
    closed_.clear();
    for (int i = 0; i < count; ++i) {
      const struct kevent& event = events[static_cast<std::size_t>(i)];
      if (event.flags & EV_ERROR) {
        on_refused(event);
      } else if (event.filter == EVFILT_SIGNAL) {
        begin_stop();
      } else if (event.filter != EVFILT_TIMER) {  // a timer's event has only ended the wait
        handle(static_cast<int>(event.ident), event.filter == EVFILT_READ,
               event.filter == EVFILT_WRITE);
      }
    }
  }

  // A change that failed comes back as an event, with the errno in its data. Without its
  // filter the connection would wait for ever, so it is closed.
  void on_refused(const struct kevent& event) {
    const int fd = static_cast<int>(event.ident);
    Connection& connection = slot(fd);
    if (fd == listener_.get()) return pause_accepting(static_cast<int>(event.data));
    if (!connection.socket) return;
    if (may_say_()) log_line("cannot watch descriptor {}", fd);
    close(connection, connection.interest());
  }

  // Calls the handlers, and applies the interest that they return.
  void handle(int fd, bool readable, bool writable) {
    if (fd == listener_.get()) return accept_ready();
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

  void accept_ready() {
    while (changes_.size() < kBatch / 2) {  // each change may come back as an event
      Accepted next = accept_from(listener_, Mode::non_blocking);
      if (next.status == Io::would_block) {
        if (stopping_) stop_listening();
        return;
      }
      if (next.status == Io::out_of_resources) return pause_accepting(next.error);
      try {
        admit(std::move(next.connection));
      } catch (const std::bad_alloc&) {
        return pause_accepting(ENOMEM);
      }
    }
  }

  void admit(Fd socket) {
    Connection& connection = slot(socket.get());
    set_interest(socket.get(), kNone, kRead);
    connection.socket = std::move(socket);
    ++open_;
  }

  // Without a free descriptor accept fails, yet the listener stays readable: a loop that
  // tried again at once would spin. So the listener is not watched until a connection
  // closes, or until the next tick, as the whole system may be out of descriptors.
  void pause_accepting(int error) {
    if (may_say_())
      log_line("cannot accept: {}; existing connections are served", error_text(error));
    if (accepting_) set_interest(listener_.get(), kRead, kNone);
    accepting_ = false;
    tick_later();
  }

  void resume_accepting() {
    if (accepting_ || !listener_) return;
    set_interest(listener_.get(), kNone, kRead);
    accepting_ = true;
  }

  // The descriptor stays open until the next wait has deleted its filters. If its number
  // were free, accept could give it to a new connection, which neither later events of
  // the batch nor these changes are about.
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
      closed_.reserve(2 * index);        // so that closing all allocates nothing,
      changes_.reserve(12 * index + 8);  // nor changing each as often as a batch can
      connections_.resize(2 * index);
    }
    return connections_[index];
  }

  // The clients in the backlog are still served: they are connected, as far as they know.
  void begin_stop() {
    if (stopping_) return;
    stopping_ = true;
    grace_ends_ = Clock::now() + kGrace;
    tick_later();
    if (accepting_) accept_ready();
  }

  // Called when the backlog is empty. While descriptors are short, it empties only as
  // connections close; then, or if clients keep coming, the grace is the limit.
  void stop_listening() {
    if (accepting_) set_interest(listener_.get(), kRead, kNone);
    accepting_ = false;
    closed_.push_back(std::move(listener_));
  }

  // Checks what no event reports: whether descriptors are free again and, at a stop, which
  // connections can be closed. Bytes may be on their way to a queue that is empty now, so a
  // connection is closed only after a full tick without activity.
  void on_tick() {
    next_tick_.reset();
    resume_accepting();
    if (!stopping_) return;
    const bool give_up = Clock::now() + kTick + kTimer > grace_ends_;  // the next tick is too late
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

  // A tick that is due stays due: a pause must not put off the end of the grace. The timer
  // always runs, as one that is made when it is needed can fail for lack of memory. Its events
  // only end the wait. They are not counted: a late one and the next are less than a period apart.
  void tick_later() {
    if (!next_tick_) next_tick_ = Clock::now() + kTick;
  }

  Fd listener_;
  Fd kqueue_{::kqueue()};
  std::vector<struct kevent> changes_;   // for the next wait
  std::vector<Connection> connections_;  // by descriptor
  std::vector<Fd> closed_;               // closed in this batch of events
  std::size_t open_ = 0;
  bool accepting_ = true;
  bool stopping_ = false;
  Clock::time_point grace_ends_;
  std::optional<Clock::time_point> next_tick_;
  OncePerSecond may_say_;
};

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options("An echo server with one thread, on kqueue.");
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
