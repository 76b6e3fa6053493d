// Stopping, and the idle timeout, with clients that make it hard: see battery.h.
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/faults.h"
#include "common/testing/swarm.h"

namespace battery {
namespace {

// Whether nothing listens there any more.
bool refuses(const Address& address) {
  try {
    const Fd socket = connect_to(address);
    return wait_for(socket, POLLOUT, patience) && connect_error(socket) == ECONNREFUSED;
  } catch (const std::system_error& error) {
    return error.code().value() == ECONNREFUSED;
  }
}

void expect_closed_door(const Address& address, const char* when) {
  if (!wait_until(1s, [&] { return refuses(address); })) fail("new clients can connect {}", when);
  try {
    listen_on(address);
  } catch (const StartupError& error) {
    fail("a successor {}, {}", error.what(), when);
  }
}

// Sends what the queues there and back can hold, and returns it. Until the client reads,
// the server cannot finish.
std::string fill_queues(Client& client) {
  std::string data(16 << 20, '\0');
  fill_pattern(seed(), 0, data);
  data.resize(client.send_what_fits(data));
  return data;
}

void expect_back(Client& client, const std::string& data, std::string back = "") {
  client.finish_sending();
  back += client.receive_until_end();
  if (back != data) {
    fail("{} bytes were sent, {} came back{}", data.size(), back.size(),
         back.size() == data.size() ? ", not the same" : "");
  }
}

}  // namespace

void idle_slow_reader(const Subject& subject) {
  with_server(subject.command.with({"--idle-timeout", "2s"}), [](ServerProcess& server) {
    Client client(server.address());
    client.limit_receive_queue(32 << 10);  // so that its reads are soon noticed
    const std::string data = fill_queues(client);
    // More than twice the timeout, and not enough bytes for the kernel to report that there
    // is room to write: for that a third of the send queue must be free.
    std::string back;
    for (int i = 0; i < 25; ++i) {
      back += client.receive(20'000);
      std::this_thread::sleep_for(200ms);
    }
    expect_back(client, data, back);
  });
}

void idle_left(const Subject& subject) {
  if (subject.clients < 50) skip("it takes 50 clients");
  with_server(subject.command.with({"--idle-timeout", "1s"}), [](ServerProcess& server) {
    Swarm early(server.address(), 50, seed());
    early.connect();
    early.leave();
    // These get the descriptors that became free. When the early clients' timers would be
    // due, 1 s after they connected, these have been silent for half of that.
    Swarm late(server.address(), 50, seed());
    late.connect();
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(500ms);
      late.exchange({});
    }
  });
}

void stop_door(const Subject& subject) {
  ServerProcess server(subject.command);
  Client client(server.address());
  const std::string data = fill_queues(client);
  server.signal(SIGTERM);
  expect_closed_door(server.address(), "1 s after SIGTERM");
  expect_back(client, data);
  expect_clean_exit(server, patience, "and the last byte");
}

void stop_shortage(const Subject& subject) {
  if (subject.clients < 40) skip("the server serves fewer at once than it has descriptors");
  Command command = subject.command;
  command.descriptor_limit = 40;
  ServerProcess server(command);
  Client busy(server.address());
  const std::string data = fill_queues(busy);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 60; ++i) {
    clients.push_back(std::make_unique<Client>(server.address()));
    clients.back()->send("hello");
  }
  server.signal(SIGTERM);
  for (const auto& client : clients) {
    const std::string back = client->receive_until_end();
    if (back != "hello") fail("\"hello\" came back as \"{}\"", back);
  }
  expect_closed_door(server.address(), "1 s after the last of the backlog was served");
  expect_back(busy, data);
  expect_clean_exit(server, patience, "and the last byte");
}

void stop_flood(const Subject& subject) {
  // Each accept takes 15 ms, so a thousand clients in the backlog take 15 s. The second
  // server is short of descriptors all the time.
  Command command = under_strace(subject.command, {"accept,accept4:delay_exit=15000"});
  std::vector<std::unique_ptr<ServerProcess>> servers;
  for (const std::size_t descriptors : {std::size_t{0}, std::size_t{40}}) {
    command.descriptor_limit = descriptors;
    servers.push_back(std::make_unique<ServerProcess>(command));
    int waiting = 0;
    try {
      for (; waiting < 1000; ++waiting) Client(servers.back()->address(), 500ms).close();
    } catch (const Failure&) {  // its backlog is full
    }
    if (waiting < 900) skip("its backlog holds only {}", waiting);
  }
  const auto limit = Clock::now() + 9s;
  for (const auto& server : servers) server->signal(SIGTERM);
  servers.front()->wait_for_exit(4s);
  for (const auto& server : servers) {
    server->signal(SIGTERM);  // which gives no second grace
    if (!server->wait_for_exit(std::chrono::ceil<milliseconds>(limit - Clock::now())))
      fail("still running 9 s after SIGTERM with a thousand clients in the backlog");
    expect_clean_exit(*server, 0ms, "with a thousand clients in the backlog");
  }
}

void stop_stalls(const Subject& subject) {
  ServerProcess server(subject.command);
  Client client(server.address());
  client.echo("hello");
  server.signal(SIGTERM);
  // A stall delays whatever the server does in regular intervals. What is due next may then
  // follow at once, and it is still too early to close a client whose pauses are short.
  const auto start = Clock::now();
  while (ms_since(start) < 3000) {
    server.freeze();
    client.send("before you can read it");
    std::this_thread::sleep_for(200ms);
    server.thaw();
    client.receive(22);
    std::this_thread::sleep_for(90ms);
    client.echo("soon after");
  }
  client.close();
  expect_clean_exit(server, 1s, "and the end of a conversation");
}

}  // namespace battery
