// What is echoed, to whom, and what it costs: see battery.h.
#include "common/testing/battery.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "common/testing/client.h"
#include "common/testing/swarm.h"

namespace battery {

const std::vector<Named>& all() {
  // An id never changes; a title may.
  static const std::vector<Named> list = {
      {"one-byte-at-a-time", "one byte at a time", one_byte_at_a_time, ""},
      {"any-bytes-any-size", "any bytes", any_bytes_any_size, ""},
      {"arbitrary-chunks", "arbitrary chunks", arbitrary_chunks, ""},
      {"half-close", "half-close", half_close, ""},
      {"half-close-slow-reader", "half-close, slow reader", half_close_slow_reader, ""},
      {"many-at-once", "many at once", many_at_once, ""},
      {"isolation", "isolation", isolation, ""},
      {"back-pressure", "back-pressure", back_pressure, ""},
      {"idle", "idle", idle, ""},
      {"reset", "reset", reset, ""},
      {"close-without-reading", "close without reading", close_without_reading, ""},
      {"churn", "churn", churn, ""},
      {"out-of-descriptors", "EMFILE", out_of_descriptors, ""},
      {"gone-before-accepted", "gone before accepted", gone_before_accepted, ""},
      {"aborted-accepts", "accept errors", aborted_accepts, ""},
      {"interrupted-calls", "EINTR", interrupted_calls, ""},
      {"short-writes", "short writes", short_writes, ""},
      {"random-errors", "random errors", random_errors, ""},
      {"out-of-memory", "out of memory", out_of_memory, ""},
      {"port-in-use", "port in use", port_in_use, ""},
      {"misuse", "bad flags", misuse, ""},
      {"stop-idle", "stop, idle", stop_idle, ""},
      {"stop-busy", "stop, busy", stop_busy, ""},
      {"stop-stuck", "stop, stuck", stop_stuck, ""},
      {"stop-unacknowledged", "stop, unacknowledged", stop_unacknowledged, ""},
      {"stop-asked-again", "stop, asked again", stop_asked_again, ""},
      {"idle-timeout", "idle timeout", idle_timeout, "--idle-timeout"},
      {"slow-handler", "slow handler", slow_handler, "--work"},
      {"order", "order", order, "--work"},
      {"idle-slow-reader", "idle timeout, slow reader", idle_slow_reader, "--idle-timeout"},
      {"idle-left", "idle timeout, those who left", idle_left, "--idle-timeout"},
      {"stop-door", "stop, the door", stop_door, ""},
      {"stop-shortage", "stop, short of descriptors", stop_shortage, ""},
      {"stop-flood", "stop, flood", stop_flood, ""},
      {"stop-stalls", "stop, stalls", stop_stalls, ""},
      {"signals-blocked", "signals, blocked", signals_blocked, ""},
      {"interrupt-ignored", "SIGINT, ignored", interrupt_ignored, ""},
      {"process-one", "process 1", process_one, ""},
      {"keep-alive", "keep-alive", keep_alive, ""},
      {"stop-blocked", "stop, blocked", stop_blocked, "--work"},
  };
  return list;
}

std::uint64_t seed() {
  if (run_seed != 0) return run_seed;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody sets the environment
  if (const char* given = std::getenv("SEED")) return std::strtoull(given, nullptr, 10);
  return std::random_device()();
}

void with_server(const Command& command, const std::function<void(ServerProcess&)>& attack) {
  ServerProcess server(command);
  const auto fate = [&server] {
    // A server that the attack crashed may need a moment to end.
    const auto exit = server.wait_for_exit(100ms);
    return fmt::format("the server: {}; its stderr: \"{}\"", exit ? exit->text() : "running",
                       server.errors());
  };
  check_ends = Clock::now() + (kSanitized ? 200s : 60s);
  const std::unique_ptr<void, void (*)(void*)> at_the_end(
      &server, [](void*) { check_ends = Clock::time_point::max(); });
  try {
    attack(server);
    if (!server.running()) fail("the server has ended");
    if (server.errors().find("Sanitizer") != std::string::npos) fail("a sanitizer spoke up");
  } catch (const Failure& failure) {
    throw Failure(fmt::format("{}\n{}", failure.what(), fate()));
  }
}

void one_byte_at_a_time(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    Client client(server.address());
    for (int i = 0; i < 5000; ++i) client.echo(std::string(1, static_cast<char>(i)));
  });
}

void any_bytes_any_size(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    std::string all_values;
    for (int i = 0; i < 256; ++i) all_values += static_cast<char>(i);
    Client client(server.address());
    client.send(all_values);
    if (client.receive(256) != all_values) fail("the 256 byte values did not come back as sent");
    client.close();

    const std::size_t sizes[] = {1, 4095, 4096, 4097, 65'536, 1 << 20, 16 << 20};
    for (const std::size_t size : sizes) {
      Swarm one(server.address(), 1, seed());
      one.connect();
      one.exchange({.bytes = size, .largest_chunk = 1 << 20});
    }
  });
}

void arbitrary_chunks(const Subject& subject) {
  with_server(subject.command, [&](ServerProcess& server) {
    Swarm swarm(server.address(), std::min<std::size_t>(subject.clients, 100), seed());
    swarm.connect();
    swarm.exchange({.bytes = 50'000, .largest_chunk = 700});
    swarm.exchange({.bytes = 200'000, .largest_chunk = 50'000});
  });
}

void half_close(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{100'000}, std::size_t{4} << 20}) {
      Swarm one(server.address(), 1, seed());
      one.connect();
      one.exchange({.bytes = size, .largest_chunk = 1 << 20, .finish = true});
    }
    // Bytes and FIN in one go: both are there when the server looks.
    server.freeze();
    Client client(server.address());
    const std::string data(50'000, 'x');
    client.send(data);
    client.finish_sending();
    server.thaw();
    if (client.receive_until_end() != data)
      fail("not all of 50,000 bytes came back before the end");
  });
}

void half_close_slow_reader(const Subject& subject) {
  with_server(subject.command, [&](ServerProcess& server) {
    Client client(server.address());
    std::string data(16 << 20, '\0');
    fill_pattern(seed(), 0, data);
    // Until the queues are full both ways. A pause alone does not show that: a server that is
    // held up would then never have to wait for this client. A reply to another client shows
    // that the server has had its turn.
    std::size_t sent = 0;
    for (std::size_t went = 1; went > 0; sent += went) {
      went = client.send_what_fits(std::string_view(data).substr(sent));
      if (subject.clients > 1) Client(server.address()).echo("your turn");
    }
    data.resize(sent);
    client.finish_sending();
    const std::string back = client.receive_until_end();
    if (back != data) {
      fail("{} bytes were sent before the first was read; {} came back{}", data.size(), back.size(),
           back.size() == data.size() ? ", not the same" : "");
    }
  });
}

void many_at_once(const Subject& subject) {
  Swarm::need_descriptors(subject.clients);
  with_server(subject.command, [&](ServerProcess& server) {
    Swarm swarm(server.address(), subject.clients, seed());
    swarm.connect();
    for (int round = 0; round < 3; ++round) swarm.exchange({.bytes = 300, .largest_chunk = 200});
    swarm.exchange({.bytes = 100, .largest_chunk = 100, .finish = true});
  });
}

void isolation(const Subject& subject) {
  if (subject.clients == 1) skip("a sequential server has one client at a time");
  with_server(subject.command, [](ServerProcess& server) {
    Client early(server.address(), 2s);
    early.echo("hello");
    // More clients than a server is likely to have threads, unless it has one for each.
    std::vector<std::unique_ptr<Client>> stuck;
    const std::string data(16 << 20, 'x');
    for (int i = 0; i < 32; ++i) {
      stuck.push_back(std::make_unique<Client>(server.address()));
      stuck.back()->send_what_fits(data, 20ms);
    }
    Client late(server.address(), 2s);
    for (int i = 0; i < 20; ++i) {
      const double delay = std::max(early.echo("early"), late.echo("late"));
      if (delay >= 100) {
        fail("a reply took {:.1f} ms beside 32 clients that send and never read", delay);
      }
    }
  });
}

void back_pressure(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    const Usage before = server.usage();
    std::vector<std::unique_ptr<Client>> clients;
    std::size_t sent = 0;
    const std::string data(64 << 20, 'x');
    for (int i = 0; i < 4; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      sent += clients.back()->send_what_fits(data);
    }
    const double cpu = server.cpu_percent(1s);
    const Usage after = server.usage();
    const std::size_t grown = after.resident - std::min(after.resident, before.resident);
    if (grown >= 8 << 20 && !kSanitized) {
      fail("{:.1f} MiB more in memory after {:.1f} MiB were sent and none read",
           double(grown) / (1 << 20), double(sent) / (1 << 20));
    }
    if (cpu >= 5) fail("{:.1f} % CPU while 4 clients do not read", cpu);
    clients.clear();
    Client(server.address()).echo("still there?");
  });
}

void idle(const Subject& subject) {
  const std::size_t count = std::min<std::size_t>(subject.clients, 1000);
  Swarm::need_descriptors(count);
  with_server(subject.command, [&](ServerProcess& server) {
    Swarm swarm(server.address(), count, seed());
    swarm.connect();
    std::vector<std::unique_ptr<Client>> queued;  // in the backlog of a sequential server
    for (int i = 0; i < 100 && subject.clients == 1; ++i) {
      queued.push_back(std::make_unique<Client>(server.address()));
    }
    const double cpu = server.cpu_percent(1s);
    if (cpu >= 1) fail("{:.2f} % CPU with {} clients that say nothing", cpu, count);
  });
}

}  // namespace battery
