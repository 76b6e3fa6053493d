// An echo server over poll(2) that passes the whole battery, and with --fault NAME
// makes one of the one-line mistakes that the battery must catch. It is how the tester
// is tested. Do not learn from it; the chapters do it better.

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <functional>
#include <list>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

#ifndef POLLRDHUP
#define POLLRDHUP 0  // macOS: the mistake that misreads it cannot be made there
#endif

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::size_t kMostPending = 64 * 1024;
volatile std::sig_atomic_t stop_requested = 0;  // what the signal handler sets

struct Connection {
  Fd socket;
  std::string output;     // read, and not yet written
  bool finished = false;  // the client has sent its last byte
  bool closed = false;
  Clock::time_point last_heard = Clock::now();  // a byte, in either direction
  std::string working_on;                       // a slow request, with its reply due at:
  std::optional<Clock::time_point> done_at;
};

class Server {
 public:
  Server(Fd listener, std::string fault, std::chrono::milliseconds idle,
         std::chrono::milliseconds work)
      : listener_(std::move(listener)), fault_(std::move(fault)), idle_(idle), work_(work) {
    entries_.reserve(1);  // all that run() allocates before it has a client
  }

  const Fd& listener() const { return listener_; }
  void run();

 private:
  bool faulty(std::string_view name) const { return fault_ == name; }
  void accept_ready();
  void or_close(Connection& c, const std::function<void()>& step);
  void read_ready(Connection& c);
  void take(Connection& c, std::string data);
  void flush(Connection& c);
  void handle_timers();
  bool silent(const Connection& c) const;
  void begin_stop();
  bool wants_to_read(const Connection& c) const;
  bool wants_to_write(const Connection& c) const;

  Fd listener_;
  const std::string fault_;
  const std::chrono::milliseconds idle_;
  const std::chrono::milliseconds work_;
  std::list<Connection> connections_;
  std::vector<pollfd> entries_;
  std::vector<Connection*> owners_;
  Clock::time_point accept_again_ = Clock::now();
  std::optional<Clock::time_point> grace_ends_;
  std::optional<Clock::time_point> orphan_;  // when the timer of a client that left is due
  Clock::time_point last_look_ = Clock::now();
  bool stalled_ = false;
  std::size_t reads_ = 0;
  OncePerSecond may_say_;
  std::vector<std::string> leak_;
};

bool Server::wants_to_read(const Connection& c) const {
  if (c.finished || c.done_at) return false;
  return c.output.size() < kMostPending || faulty("reads-without-bound") ||
         faulty("drops-pending-at-eof");
}

bool Server::wants_to_write(const Connection& c) const {
  if (faulty("waits-for-a-second-byte")) return c.output.size() > 1;
  return !c.output.empty() || faulty("write-always-armed");
}

void Server::run() {
  for (;;) {
    if (stop_requested != 0 && !grace_ends_) begin_stop();
    if (grace_ends_ && connections_.empty() && !listener_) return;
    if (grace_ends_ && Clock::now() > *grace_ends_ && !faulty("stop-without-grace")) {
      const auto jobs = std::count_if(connections_.begin(), connections_.end(),
                                      [](const Connection& c) { return c.done_at.has_value(); });
      if (jobs > 0) log_line("{} jobs are not finished", jobs);
      return;
    }

    entries_.clear();
    owners_.clear();
    for (Connection& c : connections_) {
      const int events =
          (wants_to_read(c) ? POLLIN | POLLRDHUP : 0) | (wants_to_write(c) ? POLLOUT : 0);
      entries_.push_back({c.socket.get(), static_cast<short>(events), 0});
      owners_.push_back(&c);
    }
    const bool accepting = listener_ && Clock::now() >= accept_again_;
    if (accepting) entries_.push_back({listener_.get(), POLLIN, 0});
    // 5 ms serve every timer here; a better server would compute the next one.
    const bool timers = idle_ > 0ms || work_ > 0ms || grace_ends_ || !accepting;
    if (::poll(entries_.data(), static_cast<nfds_t>(entries_.size()), timers ? 5 : -1) < 0)
      continue;  // EINTR

    for (std::size_t i = 0; i < owners_.size(); ++i) {
      Connection& c = *owners_[i];
      const short events = entries_[i].revents;
      if (faulty("closes-on-rdhup") && (events & POLLRDHUP)) c.closed = true;
      if (!c.closed && (events & POLLOUT)) flush(c);
      if (!c.closed && wants_to_read(c) && (events & (POLLIN | POLLHUP | POLLERR)))
        or_close(c, [&] { read_ready(c); });
      if ((events & POLLERR) && !wants_to_read(c)) c.closed = true;
    }
    handle_timers();
    for (Connection& c : connections_) {
      if (!c.closed) continue;
      if (faulty("leaks-descriptors")) c.socket.release();
      if (faulty("keeps-the-timer-of-one-who-left")) orphan_ = c.last_heard + idle_;
    }
    connections_.remove_if([](const Connection& c) { return c.closed; });
    if (accepting && (grace_ends_ || entries_.back().revents != 0)) accept_ready();
  }
}

void Server::accept_ready() {
  if (faulty("pauses-on-abort") && ::accept(listener_.get(), nullptr, nullptr) < 0 &&
      errno == ECONNABORTED) {
    accept_again_ = Clock::now() + 300ms;
    return;
  }
  for (int i = 0; i < 64 || faulty("accepts-without-end"); ++i) {
    Accepted next = accept_from(listener_, Mode::non_blocking);
    if (next.status == Io::would_block) {
      if (grace_ends_ && !faulty("keeps-listening")) listener_.reset();
      return;
    }
    if (next.status == Io::ok) {
      try {
        entries_.reserve(connections_.size() + 2);
        owners_.reserve(connections_.size() + 1);
        connections_.emplace_back().socket = std::move(next.connection);
      } catch (const std::bad_alloc&) {
        if (faulty("dies-without-memory")) throw;
      }
      continue;
    }
    if (faulty("spins-without-descriptors")) return;
    if (faulty("exits-without-descriptors")) std::_Exit(1);
    if (may_say_()) log_line("cannot accept for want of resources");
    accept_again_ = Clock::now() + (faulty("never-accepts-again") ? 1h : 100ms);
    return;
  }
}

void Server::or_close(Connection& c, const std::function<void()>& step) {
  try {
    step();
  } catch (const std::bad_alloc&) {
    if (faulty("dies-without-memory")) throw;
    c.closed = true;
  }
}

void Server::read_ready(Connection& c) {
  std::array<char, 64 * 1024> buffer;
  if (faulty("takes-eintr-of-read-for-an-error") && ::read(c.socket.get(), buffer.data(), 0) < 0 &&
      errno == EINTR) {
    c.closed = true;
    return;
  }
  if (faulty("takes-eintr-of-recv-for-an-error") &&
      ::recv(c.socket.get(), buffer.data(), 1, MSG_PEEK) < 0 && errno == EINTR) {
    c.closed = true;
    return;
  }
  const IoResult in = read_some(c.socket, buffer);
  if (in.status == Io::would_block) return;
  if (in.status == Io::end) {
    c.finished = true;
    if (c.output.empty() || faulty("drops-pending-at-eof")) c.closed = true;
    return;
  }
  if (in.status != Io::ok) {
    if (faulty("exits-on-an-error")) std::_Exit(1);
    c.closed = true;
    return;
  }
  if (!faulty("never-restarts-the-timer")) c.last_heard = Clock::now();
  ++reads_;
  std::string data(buffer.data(), in.size);
  if (faulty("c-string"))
    data.resize(std::string_view(data).find('\0') == std::string_view::npos ? data.size()
                                                                            : data.find('\0'));
  if (faulty("truncates-large-reads")) data.resize(std::min<std::size_t>(data.size(), 16'384));
  if (faulty("leaks-memory")) leak_.emplace_back(4096, 'x');
  if (faulty("mixes-connections") && reads_ % 100 == 0)
    return take(connections_.front(), std::move(data));
  take(c, std::move(data));
}

// `data` is a request: slow ones begin with '#'.
void Server::take(Connection& c, std::string data) {
  if (work_ > 0ms && data.front() == '#') {
    if (faulty("works-in-the-loop")) {
      std::this_thread::sleep_for(work_);
    } else {
      c.working_on = std::move(data);
      c.done_at = Clock::now() + work_;
      if (faulty("quick-overtakes-slow"))
        std::exchange(c.done_at, {}), c.last_heard = Clock::now() + work_;
      return;
    }
  }
  c.output += data;
  if (faulty("waits-for-a-second-byte") && c.output.size() < 2) return;
  flush(c);
}

void Server::flush(Connection& c) {
  while (!c.output.empty()) {
    const IoResult out = write_some(c.socket, c.output);
    if (out.status == Io::would_block && faulty("blocks-in-write")) {
      pollfd entry = {c.socket.get(), POLLOUT, 0};
      ::poll(&entry, 1, -1);
      continue;
    }
    if (out.status == Io::would_block) return;
    if (out.status != Io::ok) {
      if (faulty("exits-on-an-error")) std::_Exit(1);
      c.closed = true;
      return;
    }
    if (!faulty("never-restarts-the-timer")) c.last_heard = Clock::now();
    c.output.erase(0, faulty("forgets-a-partial-write") ? std::string::npos : out.size);
  }
  if (c.finished) c.closed = true;
}

bool Server::silent(const Connection& c) const {
  return idle_ > 0ms && Clock::now() - c.last_heard >= idle_ && !faulty("starts-no-timer");
}

void Server::handle_timers() {
  const auto now = Clock::now();
  if (now - std::exchange(last_look_, now) > 150ms) stalled_ = true;
  for (Connection& c : connections_) {
    const bool overtaken =
        faulty("quick-overtakes-slow") && !c.working_on.empty() && now >= c.last_heard;
    if ((c.done_at && now >= *c.done_at) || overtaken) {
      c.done_at.reset();
      or_close(c, [&] {
        c.output += std::exchange(c.working_on, {});
        flush(c);
      });
    }
    if (silent(c) && !faulty("waits-for-room-to-write")) flush(c);
    if (silent(c) || (orphan_ && now >= *orphan_)) c.closed = true;
    if (grace_ends_ && c.output.empty() && !c.finished && !c.done_at)
      or_close(c, [&] { read_ready(c); });  // what is still unread
    const auto pause = stalled_ && faulty("takes-a-stall-for-a-pause") ? 50ms : 300ms;
    const bool drained = c.output.empty() && !c.done_at && !c.finished &&
                         now - c.last_heard > pause &&
                         (!underway(c.socket).out || faulty("takes-written-for-received"));
    if (grace_ends_ && drained && !faulty("waits-for-the-idle")) c.closed = true;
  }
}

void Server::begin_stop() {
  if (faulty("drops-everything-at-stop")) std::_Exit(0);
  if (faulty("drops-the-backlog-at-stop")) listener_.reset();
  grace_ends_ = Clock::now() + 5s;
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  std::string fault;
  std::chrono::milliseconds idle{0};
  std::chrono::milliseconds work{0};
  Options options("An echo server that makes a mistake on request.");
  options.add(endpoint);
  options.add("fault", fault, "the mistake");
  options.add("idle-timeout", idle, "close connections that are silent for so long");
  options.add("work", work, "time that a request takes that begins with '#'");
  if (argc >= 5 && std::string_view(argv[2]) == "lenient-flags") {
    endpoint.port = static_cast<std::uint16_t>(std::atoi(argv[4]));
  } else {
    options.parse(argc, argv);
  }

  try {
    if (fault != "dies-of-sigpipe") ignore_sigpipe();
    raise_descriptor_limit();
    struct sigaction action = {};
    action.sa_handler = [](int) { stop_requested = 1; };
    if (fault == "uses-at-a-signal-what-is-gone") {
      action.sa_handler = [](int) {
        while (stop_requested != 0) {
        }
        stop_requested = 1;
      };
    }
    if (fault == "dies-of-a-second-signal") action.sa_flags = static_cast<int>(SA_RESETHAND);
    const auto numbers = fault == "takes-signals-as-they-come" ? std::vector{SIGINT, SIGTERM}
                                                               : unblock_stop_signals();
    for (const int number : numbers) {
      if (fault != "has-no-signal-handler") ::sigaction(number, &action, nullptr);
    }
    Fd listener = listen_on(resolve(endpoint.host, endpoint.port), Mode::non_blocking);
    const int off = 0;
    if (fault == "keeps-who-vanished")
      ::setsockopt(listener.get(), SOL_SOCKET, SO_KEEPALIVE, &off, sizeof(off));
    Server server(std::move(listener), fault, idle, work);
    announce(server.listener());  // out of memory before this: it did not start
    server.run();
  } catch (const std::exception& error) {
    if (fault == "complains-on-stdout") return fmt::print("{}\n", error.what()), 0;
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
