// What common/socket promises in its headers, call by call.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/holds.h"

using namespace std::chrono_literals;

namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
bool is_non_blocking(const Fd& fd) { return (::fcntl(fd.get(), F_GETFL) & O_NONBLOCK) != 0; }
bool is_close_on_exec(const Fd& fd) { return (::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0; }

int option(const Fd& socket, int level, int name) {
  int value = 0;
  socklen_t size = sizeof(value);
  REQUIRE(::getsockopt(socket.get(), level, name, &value, &size) == 0);
  return value;
}

void await(const Fd& fd, short events) {
  pollfd entry = {fd.get(), events, 0};
  REQUIRE(::poll(&entry, 1, 5000) == 1);
}

// Both ends of a connection over loopback.
struct Pair {
  explicit Pair(Mode mode = Mode::non_blocking) {
    ignore_sigpipe();
    const Fd listener = listen_on(resolve("127.0.0.1", 0));
    client = connect_to(local_address(listener));
    server = accept_from(listener, mode).connection;
    await(client, POLLOUT);
    REQUIRE(connect_error(client) == 0);
  }
  Fd client;
  Fd server;
};

void send_reset(Fd& socket) {
  const linger at_once = {1, 0};
  REQUIRE(::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)) == 0);
  socket.reset();
}

template <typename Function>
std::string startup_error(Function function) {
  try {
    function();
  } catch (const StartupError& error) {
    return error.what();
  }
  return "no StartupError";
}

}  // namespace

TEST_CASE("fd-owns: an Fd is moved: one owner, one close") {
  int number = -1;
  {
    Fd first(::dup(0));
    number = first.get();
    Fd second = std::move(first);
    CHECK(second.get() == number);
    CHECK(is_open(number));
    Fd third;
    CHECK_FALSE(third);
    third = std::move(second);
    CHECK(third);
  }
  CHECK_FALSE(is_open(number));

  Fd released(::dup(0));
  number = released.release();
  CHECK_FALSE(released);
  CHECK(is_open(number));
  ::close(number);
}

TEST_CASE("addresses: host and port: resolved, and written as text") {
  CHECK(to_text(resolve("127.0.0.1", 80)) == "127.0.0.1:80");
  CHECK(to_text(resolve("::1", 80)) == "[::1]:80");
  CHECK(startup_error([] {
          resolve("no such host", 80);
        }).starts_with("cannot resolve host 'no such host': "));
}

TEST_CASE(
    "listener-options: a listener and its connections: they have the options that servers need") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  CHECK(to_text(local_address(listener)) != "127.0.0.1:0");
  CHECK(option(listener, SOL_SOCKET, SO_REUSEADDR) != 0);
  CHECK(is_close_on_exec(listener));
  CHECK_FALSE(is_non_blocking(listener));
  CHECK(is_non_blocking(listen_on(resolve("127.0.0.1", 0), Mode::non_blocking)));

  const Fd client = connect_to(local_address(listener));
  const Fd server = accept_from(listener, Mode::non_blocking).connection;
  CHECK(option(server, IPPROTO_TCP, TCP_NODELAY) != 0);
  CHECK(option(server, SOL_SOCKET, SO_KEEPALIVE) != 0);
#if defined(__APPLE__)
  CHECK(option(server, IPPROTO_TCP, TCP_KEEPALIVE) == 15);
#elif defined(TCP_KEEPIDLE)
  CHECK(option(server, IPPROTO_TCP, TCP_KEEPIDLE) == 15);
#endif
#ifdef TCP_KEEPINTVL
  CHECK(option(server, IPPROTO_TCP, TCP_KEEPINTVL) == 15);
  CHECK(option(server, IPPROTO_TCP, TCP_KEEPCNT) == 9);
#endif
  CHECK(is_close_on_exec(server));
  CHECK(is_non_blocking(server));
}

TEST_CASE("urgent-byte: an urgent byte: it is read in its place") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  const Fd client = connect_to(local_address(listener));
  const Fd server = accept_from(listener).connection;
  await(client, POLLOUT);
  CHECK(write_some(client, "be").size == 2);
  CHECK(::send(client.get(), "!", 1, MSG_OOB) == 1);
  CHECK(write_some(client, "hind").size == 4);
  ::shutdown(client.get(), SHUT_WR);

  std::string bytes;
  std::array<char, 16> buffer;
  for (;;) {
    const IoResult in = read_some(server, buffer);
    if (in.status != Io::ok) break;
    bytes.append(buffer.data(), in.size);
  }
  CHECK(bytes == "be!hind");
}

TEST_CASE(
    "accept-mode: a non-blocking listener: its connection blocks if the server asks for that") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0), Mode::non_blocking);
  const Fd first = connect_to(local_address(listener));
  await(listener, POLLIN);
  CHECK_FALSE(is_non_blocking(accept_from(listener, Mode::blocking).connection));
}

TEST_CASE("ipv6: an IPv6 address: listen, connect and accept work") {
  holds([] {
    Fd listener;
    try {
      listener = listen_on(resolve("::1", 0));
    } catch (const StartupError& error) {
      skip("no IPv6 here: {}", error.what());
    }
    CHECK(to_text(local_address(listener)).starts_with("[::1]:"));
    const Fd client = connect_to(local_address(listener));
    CHECK(accept_from(listener).status == Io::ok);
  });
}

TEST_CASE("listen-errors: a port in use, or a foreign address: a startup error") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  const Address taken = local_address(listener);
  CHECK(startup_error([&] { listen_on(taken); }) ==
        "cannot listen on " + to_text(taken) + ": Address already in use");
  // TEST-NET-1 (RFC 5737) belongs to no machine.
  CHECK(startup_error([] {
          listen_on(resolve("192.0.2.1", 0));
        }).starts_with("cannot listen on 192.0.2.1:0: "));
}

TEST_CASE("accept-none: the backlog is empty: accept returns would_block") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0), Mode::non_blocking);
  const Accepted none = accept_from(listener);
  CHECK(none.status == Io::would_block);
  CHECK_FALSE(none.connection);
}

TEST_CASE(
    "accept-no-descriptor: no free descriptor: accept returns out_of_resources, the connection "
    "stays") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0), Mode::non_blocking);
  const Fd client = connect_to(local_address(listener));
  await(listener, POLLIN);
  rlimit usual = {};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  const rlimit none = {0, usual.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const Accepted refused = accept_from(listener);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &usual) == 0);
  CHECK(refused.status == Io::out_of_resources);
  CHECK(refused.error == EMFILE);
  CHECK(accept_from(listener).status == Io::ok);  // the connection was kept
}

TEST_CASE("accept-no-listener: accept on a connected socket: it throws") {
  const Pair pair;
  CHECK_THROWS_AS(accept_from(pair.client), std::system_error);
}

TEST_CASE("connect-refused: nothing listens at the address: connect fails with ECONNREFUSED") {
  const Address gone = local_address(listen_on(resolve("127.0.0.1", 0)));
  try {
    const Fd client = connect_to(gone);
    await(client, POLLOUT);
    CHECK(connect_error(client) == ECONNREFUSED);
  } catch (const std::system_error& error) {
    CHECK(error.code().value() == ECONNREFUSED);  // the BSDs report it at once
  }
}

TEST_CASE("connect-source: a client with a source address: it connects from there") {
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  const Address source = resolve("127.0.0.1", 0);
  const Fd client = connect_to(local_address(listener), &source);
  CHECK(accept_from(listener).status == Io::ok);
  CHECK(to_text(local_address(client)).starts_with("127.0.0.1:"));
}

TEST_CASE("read-results: nothing, then bytes, then a half-close: would_block, ok, end") {
  Pair pair;
  std::array<char, 16> buffer;
  CHECK(read_some(pair.server, buffer).status == Io::would_block);
  REQUIRE(write_some(pair.client, "hello").size == 5);
  await(pair.server, POLLIN);
  const IoResult in = read_some(pair.server, buffer);
  CHECK(in.status == Io::ok);
  CHECK(std::string(buffer.data(), in.size) == "hello");

  ::shutdown(pair.client.get(), SHUT_WR);
  await(pair.server, POLLIN);
  CHECK(read_some(pair.server, buffer).status == Io::end);
  CHECK(write_some(pair.server, "you can still hear me").status == Io::ok);
}

TEST_CASE("write-results: the peer does not read: write takes a part, then returns would_block") {
  Pair pair;
  const std::string much(64 << 20, 'x');
  const IoResult first = write_some(pair.server, much);
  CHECK(first.status == Io::ok);
  CHECK(first.size < much.size());
  IoResult last = first;
  while (last.status == Io::ok) last = write_some(pair.server, much);
  CHECK(last.status == Io::would_block);
}

TEST_CASE("reset-results: a reset: read and write return peer_gone, and no signal comes") {
  Pair pair;
  REQUIRE(write_some(pair.server, "unread").size == 6);
  send_reset(pair.client);
  await(pair.server, POLLIN);
  std::array<char, 16> buffer;
  CHECK(read_some(pair.server, buffer).status == Io::peer_gone);
  CHECK(write_some(pair.server, "anybody?").status == Io::peer_gone);  // EPIPE, not SIGPIPE
}

TEST_CASE("underway: bytes unread, or not acknowledged: underway reports them") {
  Pair pair;
  CHECK_FALSE(underway(pair.server).in);
  CHECK_FALSE(underway(pair.server).out);
  REQUIRE(::send(pair.client.get(), "!", 1, MSG_OOB) == 1);
  REQUIRE(write_some(pair.client, "behind an urgent byte").status == Io::ok);
  await(pair.server, POLLIN);
  CHECK(underway(pair.server).in);
  std::array<char, 64> buffer;
  while (read_some(pair.server, buffer).status == Io::ok) {
  }
  CHECK_FALSE(underway(pair.server).in);
  const std::string much(1 << 20, 'x');
  while (write_some(pair.server, much).status == Io::ok) {
  }
#ifdef __linux__  // other systems may not report it
  REQUIRE(underway(pair.server).out);
#endif
  std::vector<char> all(1 << 20);
  for (int quiet = 0; quiet < 50; ++quiet) {
    while (read_some(pair.client, all).status == Io::ok) quiet = 0;
    if (!underway(pair.server).out) break;
    ::poll(nullptr, 0, 10);
  }
  CHECK_FALSE(underway(pair.server).out);
}

TEST_CASE("read-interrupted: signals during a blocking read: it goes on") {
  Pair pair(Mode::blocking);
  struct sigaction action = {};
  struct sigaction usual = {};
  action.sa_handler = [](int) {};  // without SA_RESTART: read returns EINTR
  REQUIRE(::sigaction(SIGUSR1, &action, &usual) == 0);
  IoResult in = {Io::would_block, 0};
  std::array<char, 16> buffer;
  std::thread reader([&] { in = read_some(pair.server, buffer); });
  for (int i = 0; i < 100; ++i) {
    ::pthread_kill(reader.native_handle(), SIGUSR1);
    std::this_thread::sleep_for(1ms);
  }
  REQUIRE(write_some(pair.client, "hello").size == 5);
  reader.join();
  ::sigaction(SIGUSR1, &usual, nullptr);
  CHECK(in.status == Io::ok);
  CHECK(in.size == 5);
}

TEST_CASE("pipe: an empty or a full pipe: neither end blocks") {
  const Pipe pipe = make_pipe();
  std::array<char, 16> buffer;
  CHECK(read_some(pipe.read_end, buffer).status == Io::would_block);
  CHECK(write_some(pipe.write_end, "!").size == 1);
  CHECK(read_some(pipe.read_end, buffer).size == 1);
  while (write_some(pipe.write_end, std::string(4096, '!')).status == Io::ok) {
  }
  CHECK(write_some(pipe.write_end, "!").status == Io::would_block);
  CHECK(is_close_on_exec(pipe.read_end));
  CHECK(is_close_on_exec(pipe.write_end));
}

TEST_CASE("descriptor-limit: a low soft limit: it is raised to the hard limit") {
  rlimit usual = {};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  const rlimit low = {64, usual.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &low) == 0);
  const std::size_t raised = raise_descriptor_limit();
  rlimit now = {};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &now) == 0);
  CHECK(raised == now.rlim_cur);
  CHECK(raised > 64);
}

TEST_CASE(
    "file-size-limit: a file has reached its size limit: the write fails, the process lives") {
  ignore_sigpipe();
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &usual) == 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = usual.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &none) == 0);
  const ssize_t written = ::write(::fileno(file), "!", 1);
  const int error = errno;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &usual) == 0);
  CHECK(written == -1);
  CHECK(error == EFBIG);
  (void)std::fclose(file);
}

TEST_CASE("standard-descriptors: standard input is closed: no socket gets its number") {
  const Fd usual(::dup(STDIN_FILENO));
  ::close(STDIN_FILENO);
  keep_standard_descriptors();
  CHECK(is_open(STDIN_FILENO));
  const Fd listener = listen_on(resolve("127.0.0.1", 0));
  CHECK(listener.get() > STDERR_FILENO);
  ::dup2(usual.get(), STDIN_FILENO);
}

TEST_CASE("log-line: stderr is full: the line is lost, the process does not wait") {
  const Fd usual(::dup(STDERR_FILENO));
  int ends[2] = {};
  REQUIRE(::pipe(ends) == 0);
  const Fd read_end(ends[0]);
  const Fd write_end(ends[1]);
  ::dup2(write_end.get(), STDERR_FILENO);
  log_line("{} is cut", std::string(600, 'x'));
  std::array<char, 1024> line;
  const IoResult in = read_some(read_end, line);

  set_non_blocking(write_end);  // only to fill it: log_line must not depend on it
  while (write_some(write_end, std::string(4096, '!')).status == Io::ok) {
  }
  ::fcntl(STDERR_FILENO, F_SETFL, 0);
  ::alarm(5);  // kills this test if the line waits for a reader
  log_line("nobody reads this");
  ::alarm(0);
  ::dup2(usual.get(), STDERR_FILENO);
  CHECK(in.size == 501);
  CHECK(line[499] == 'x');
  CHECK(line[500] == '\n');
}

TEST_CASE("once-per-second: a repeated message: it is allowed once a second") {
  OncePerSecond may_say;
  CHECK(may_say());
  CHECK_FALSE(may_say());
  std::this_thread::sleep_for(1001ms);
  CHECK(may_say());
  CHECK_FALSE(may_say());
}

TEST_CASE("durations: a text: a duration if it is a number and its unit") {
  CHECK(parse_duration("300ms") == 300ms);
  CHECK(parse_duration("30s") == 30s);
  CHECK(parse_duration("5m") == 5min);
  CHECK(parse_duration("1h") == 1h);
  CHECK(parse_duration("596h") == 596h);
  for (const char* wrong : {"", "30", "s", "ms", "0s", "-1s", "1.5s", "1 s", "1sec", "1S", " 1s",
                            "597h", "99999999999999999999s"}) {
    CAPTURE(wrong);
    CHECK_FALSE(parse_duration(wrong).has_value());
  }
  CHECK(to_text(1500ms) == "1500ms");
  CHECK(to_text(std::chrono::milliseconds(30s)) == "30s");
  CHECK(to_text(std::chrono::milliseconds(90s)) == "90s");
  CHECK(to_text(std::chrono::milliseconds(2h)) == "2h");
}

TEST_CASE("options: flags and a command: the variables are set, the command is left") {
  Endpoint endpoint;
  std::size_t clients = 7;
  std::chrono::milliseconds timeout = 1s;
  bool loud = false;
  bool quiet = false;
  Options options("A test.");
  options.add(endpoint);
  options.add("clients", clients, "how many");
  options.add("timeout", timeout, "how long");
  options.add("loud", loud, "whether");
  options.add("quiet", quiet, "whether not");
  std::string words[] = {"program", "--port=0", "--loud", "--host",    "::1", "--timeout",
                         "2m",      "--",       "run",    "--clients", "3"};
  char* argv[11];
  for (std::size_t i = 0; i < 11; ++i) argv[i] = words[i].data();
  const auto command = options.parse_command(11, argv);
  CHECK(loud);
  CHECK(!quiet);
  CHECK(endpoint.host == "::1");
  CHECK(endpoint.port == 0);
  CHECK(clients == 7);
  CHECK(timeout == 2min);
  CHECK(command == std::vector<std::string>{"run", "--clients", "3"});
}

TEST_CASE("error-text: two threads ask what an errno means: each keeps its own answer") {
  const char* mine = error_text(10'001);  // unknown: its text is made in a buffer
  const std::string before = mine;
  std::string other;
  std::thread([&other] { other = error_text(10'002); }).join();
  CHECK(mine == before);
  CHECK(other != before);
  CHECK(before.find("10001") != std::string::npos);
}
