// How a server starts, stops, and treats time: see battery.h.
#include <algorithm>
#include <csignal>
#include <memory>
#include <string>
#include <thread>

#include "common/socket/socket.h"
#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/faults.h"
#include "common/testing/swarm.h"

namespace battery {

void expect_clean_exit(ServerProcess& server, milliseconds limit, const char* when) {
  const auto start = Clock::now();
  const auto exit = server.wait_for_exit(limit);
  if (!exit) fail("still running {:.0f} ms after SIGTERM {}", ms_since(start), when);
  if (exit->signalled || exit->code != 0) {
    fail("{} after SIGTERM {}; stderr: \"{}\"", exit->text(), when, server.errors());
  }
}

namespace {

void need_own_flags(const Subject& subject) {
  if (subject.command.port_is_given()) skip("a server with flags of its own");
}

}  // namespace

void expect_refusal(const Command& command, int exit_code, const std::string& says) {
  const Run run = run_to_end(command, 5s);
  const std::size_t end = run.errors.find('\n');
  const std::string first_line = run.errors.substr(0, end);
  const std::string rest = end == std::string::npos ? "" : run.errors.substr(end + 1);
  const bool form = exit_code == 2 ? rest.starts_with("usage: ") : rest.empty();
  if (run.exit.signalled || run.exit.code != exit_code || !run.output.empty() || !form ||
      first_line.find(says) == std::string::npos) {
    fail("{}: {}, stdout \"{}\", stderr \"{}\"; due were exit code {}, a line with \"{}\"{}",
         command.name(), run.exit.text(), run.output, run.errors, exit_code, says,
         exit_code == 2 ? ", and the usage" : " and nothing else");
  }
}

void misuse(const Subject& subject) {
  need_own_flags(subject);
  const Command& server = subject.command;
  expect_refusal(server.with({"--nonsense"}), 2, "unknown flag '--nonsense'");
  expect_refusal(server.with({"-x"}), 2, "unknown flag '-x'");
  expect_refusal(server.with({"--port"}), 2, "--port needs a value");
  for (const char* port : {"banana", "70000", "-1", "80x", ""}) {
    expect_refusal(server.with({"--port", port}), 2, "--port takes a number from 0 to 65535");
  }
  expect_refusal(server.with({"left over"}), 2, "unexpected argument 'left over'");
  expect_refusal(server.with({"--host", "no such host"}), 1, "cannot resolve host 'no such host'");

  const Run help = run_to_end(server.with({"--help"}));
  if (help.exit.code != 0 || !help.output.starts_with("usage: ") || !help.errors.empty()) {
    fail("--help: {}, stdout \"{}\", stderr \"{}\"", help.exit.text(), help.output, help.errors);
  }
}

void port_in_use(const Subject& subject) {
  need_own_flags(subject);
  const Fd taken = listen_on(resolve("127.0.0.1", 0));
  const std::string address = to_text(local_address(taken));
  const std::string port = address.substr(address.rfind(':') + 1);
  expect_refusal(subject.command.with({"--port", port}), 1,
                 "cannot listen on 127.0.0.1:" + port + ": Address already in use");
}

void stop_idle(const Subject& subject) {
  ServerProcess server(subject.command);
  Swarm swarm(server.address(), std::min<std::size_t>(subject.clients, 100), seed());
  swarm.connect();
  server.signal(SIGTERM);
  expect_clean_exit(server, 1s, "with idle clients");
}

void stop_busy(const Subject& subject) {
  ServerProcess server(subject.command);
  Client client(server.address());
  std::string data(16 << 20, '\0');
  fill_pattern(seed(), 0, data);
  data.resize(client.send_what_fits(data));  // the queues on the way are full now
  client.finish_sending();
  server.signal(SIGTERM);
  const std::string back = client.receive_until_end();
  if (back != data) {
    fail("{} bytes were on their way at SIGTERM; {} came back{}", data.size(), back.size(),
         back.size() == data.size() ? ", not the same" : "");
  }
  expect_clean_exit(server, patience, "and the last byte");
}

void stop_stuck(const Subject& subject) {
  ServerProcess server(subject.command);
  Client client(server.address());
  client.send_what_fits(std::string(64 << 20, 'x'));
  server.signal(SIGTERM);
  expect_clean_exit(server, 7s, "with a client that never reads (the grace is 5 s)");
}

void stop_unacknowledged(const Subject& subject) {
  ServerProcess server(subject.command);
  Client client(server.address());
  std::string data(1 << 20, '\0');
  fill_pattern(seed(), 0, data);
  client.send(data);
  client.hears_within(patience);
  server.signal(SIGTERM);
  // All of it is written, and most is not received. A server that closes now loses nothing
  // as long as the client is silent: the kernel sends the rest. But the kernel answers the
  // client's next bytes with a reset, in place of the rest.
  if (server.wait_for_exit(1s)) {
    fail("gone 1 s after SIGTERM, though the client has yet to receive; stderr: \"{}\"",
         server.errors());
  }
  client.send("!");
  if (client.receive(data.size() + 1) != data + "!") fail("what came back is not what was sent");
  client.finish_sending();
  expect_clean_exit(server, patience, "and the last byte");
}

void stop_asked_again(const Subject& subject) {
  // Each close takes 50 ms, so signals also arrive while the server shuts down.
  ServerProcess server(under_strace(subject.command, {"close:delay_exit=50000"}));
  Client(server.address()).echo("hello");
  const auto start = Clock::now();
  while (server.running()) {
    if (ms_since(start) > 5000) fail("still running after 5 s of SIGTERM, one each 3 ms");
    server.signal(SIGTERM);
    std::this_thread::sleep_for(3ms);
  }
  expect_clean_exit(server, 0ms, "again and again");
}

void idle_timeout(const Subject& subject) {
  if (subject.clients < 2) skip("it takes two clients");
  with_server(subject.command.with({"--idle-timeout", "1s"}), [](ServerProcess& server) {
    Client lively(server.address());
    Client silent(server.address());
    silent.echo("the last thing I say");
    const auto start = Clock::now();
    double closed_after = 0;
    for (int i = 0; i < 6; ++i) {
      lively.echo("I am here");
      if (closed_after == 0 && silent.is_closed_within(500ms)) closed_after = ms_since(start);
      if (closed_after != 0) std::this_thread::sleep_until(start + (i + 1) * 500ms);
    }
    if (closed_after < 950 || closed_after > 1500) {
      fail("silent for 1 s is the limit; closed after {:.0f} ms (0: not at all)", closed_after);
    }
    lively.echo("and still here");
  });
}

std::vector<double> delays_beside_a_slow_request(const Subject& subject) {
  if (subject.clients < 101) skip("it takes 101 clients");
  std::vector<double> delays;
  with_server(subject.command.with({"--work", "300ms"}), [&](ServerProcess& server) {
    std::vector<std::unique_ptr<Client>> quick;
    for (int i = 0; i < 100; ++i) {
      quick.push_back(std::make_unique<Client>(server.address()));
      quick.back()->echo("hello");
    }
    Client slow(server.address());
    slow.echo("hello");
    for (int round = 0; round < 2; ++round) {
      const auto start = Clock::now();
      slow.send("#");
      if (slow.hears_within(10ms))
        fail("a slow request was answered within {:.0f} ms", ms_since(start));
      for (const auto& client : quick) client->send("quick");
      for (const auto& client : quick) {
        client->receive(5);
        delays.push_back(ms_since(start));
      }
      slow.receive(1);
      if (ms_since(start) < 290) fail("300 ms of work took {:.0f} ms", ms_since(start));
    }
  });
  std::sort(delays.begin(), delays.end());
  return delays;
}

void slow_handler(const Subject& subject) {
  const std::vector<double> delays = delays_beside_a_slow_request(subject);
  const double p99 = delays[delays.size() * 99 / 100];
  // The delays count from the slow request, which had a head start of 10 ms.
  if (p99 >= 30) fail("beside a request of 300 ms, quick ones take {:.1f} ms (p99)", p99 - 10);
}

void order(const Subject& subject) {
  with_server(subject.command.with({"--work", "50ms"}), [](ServerProcess& server) {
    Client client(server.address());
    std::string sent;
    for (int i = 0; i < 8; ++i) {
      const std::string request =
          i % 2 == 0 ? fmt::format("#slow {} ", i) : fmt::format("quick {} ", i);
      client.send(request);
      sent += request;
      // Makes each likely to be a read of its own; the check holds without it too.
      std::this_thread::sleep_for(5ms);
    }
    const std::string back = client.receive(sent.size());
    if (back != sent) fail("sent \"{}\", received \"{}\"", sent, back);
  });
}

}  // namespace battery
