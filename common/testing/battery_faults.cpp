// What goes wrong on a network and in a kernel: see battery.h.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/faults.h"
#include "common/testing/swarm.h"

namespace battery {
namespace {

constexpr int kClientsOutside = 120;  // against a server with 40 descriptors

// A conversation of many clients, in which every byte must be right.
void expect_clean_traffic(const Subject& subject, ServerProcess& server) {
  Swarm swarm(server.address(), std::min<std::size_t>(subject.clients, 20), seed());
  swarm.connect();
  swarm.exchange({.bytes = 100'000, .largest_chunk = 20'000});
  swarm.exchange({.bytes = 20'000, .largest_chunk = 300, .finish = true});
}

std::size_t lines_in(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

// The `clients` that have been served, once half a second brings no more.
std::vector<std::size_t> who_is_served(const std::vector<std::unique_ptr<Client>>& clients) {
  std::vector<std::size_t> served;
  std::vector<bool> counted(clients.size(), false);
  auto last = Clock::now();
  while (Clock::now() - last < 500ms) {
    for (std::size_t i = 0; i < clients.size(); ++i) {
      if (counted[i] || !clients[i]->hears_within(0ms)) continue;
      counted[i] = true;
      served.push_back(i);
      last = Clock::now();
    }
    std::this_thread::sleep_for(1ms);
  }
  return served;
}

// A client sends `size` bytes and reads none. Then more bytes and its FIN arrive while
// the server's pending bytes can leave. For some sizes there are pending bytes, but not
// so many that the server has stopped reading.
void expect_pending_in_order(ServerProcess& server, std::size_t size) {
  std::string data(size + 1'000, '\0');
  fill_pattern(battery::seed(), 0, data);
  Client client(server.address());
  std::size_t sent = client.send_what_fits({data.data(), size}, 50ms);
  client.hears_within(patience);
  std::this_thread::sleep_for(20ms);  // until nothing moves; if too short, less is tried
  server.freeze();
  std::string back = client.receive(4 << 10);
  sent += client.send_what_fits({data.data() + sent, 1'000}, 50ms);
  data.resize(sent);
  client.finish_sending();
  server.thaw();
  std::this_thread::sleep_for(20ms);  // until the end has been read; likewise
  back += client.receive_until_end();
  if (back != data) {
    fail("{} bytes and a half-close: {} came back{}", data.size(), back.size(),
         back.size() == data.size() ? ", not the same" : "");
  }
}

}  // namespace

void reset(const Subject& subject) {
  with_server(subject.command, [&](ServerProcess& server) {
    std::mt19937_64 random(seed());
    std::unique_ptr<Client> witness;
    if (subject.clients > 1) witness = std::make_unique<Client>(server.address());
    const std::string much(1 << 20, 'x');
    for (int i = 0; i < 200; ++i) {
      Client client(server.address());
      switch (random() % 4) {
        case 0: break;                              // before any data
        case 1: client.send("half a line"); break;  // the reply is under way
        case 2:
          client.echo("a line");
          client.send(much.substr(0, 65'536));
          break;
        case 3: i % 20 == 3 ? (void)client.send_what_fits(much + much) : client.send("y"); break;
      }
      client.reset();
      if (witness) witness->echo("I am still here");
    }
    Client(server.address()).echo("and so am I");
  });
}

void close_without_reading(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    const std::string data(1 << 20, 'x');
    for (int i = 0; i < 20; ++i) Client(server.address()).send_what_fits(data, 20ms);
    Client(server.address()).echo("still there?");

    // The same, but the last byte and the FIN arrive before the server reads at all.
    // Its first write then succeeds, and is answered by RST; the second raises SIGPIPE.
    for (int i = 0; i < 5; ++i) {
      Client client(server.address());
      for (int warm_up = 0; warm_up < 4; ++warm_up) client.echo(data);  // the receive window grows
      server.freeze();
      client.send_what_fits(data.substr(0, 300'000), 20ms);
      client.close();
      server.thaw();
    }
    Client(server.address()).echo("and now?");
  });
}

void churn(const Subject& subject) {
  with_server(subject.command, [](ServerProcess& server) {
    const auto come_and_go = [&] {
      for (int i = 0; i < 5000; ++i) Client(server.address()).echo("hello");
    };
    Usage before;
    Usage after = server.usage();
    const auto settled = [&] {
      before = after;
      after = server.usage();
      return before.descriptors == after.descriptors && before.threads == after.threads;
    };
    come_and_go();  // its pools and caches are warm
    if (!wait_until(patience, settled)) fail("the number of descriptors does not settle");

    // Memory use varies for many reasons (a collector, an arena). A leak only grows,
    // with every batch. 512 KiB are 105 bytes a client.
    for (int batch = 0; batch < 5; ++batch) {
      before = after;
      come_and_go();
      const bool returned = wait_until(2s, [&] {
        after = server.usage();
        return after.descriptors <= before.descriptors && after.threads <= before.threads + 4;
      });
      if (!returned) {
        fail("after 5,000 more clients came and went: descriptors {} -> {}, threads {} -> {}",
             before.descriptors, after.descriptors, before.threads, after.threads);
      }
      if (kSanitized || after.resident < before.resident + (512 << 10)) return;
    }
    fail("with each of five times 5,000 clients more memory stayed taken, at last {} -> {} KiB",
         before.resident / 1024, after.resident / 1024);
  });
}

void out_of_descriptors(const Subject& subject) {
  if (subject.clients < 40) skip("the server serves fewer at once than it has descriptors");
  Command command = subject.command;
  command.descriptor_limit = 40;
  with_server(command, [](ServerProcess& server) {
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < kClientsOutside; ++i) {
      clients.push_back(std::make_unique<Client>(server.address()));
      clients.back()->send("hello");
    }
    auto served = who_is_served(clients);
    if (served.size() < 20 || served.size() > 40) {
      fail("with 40 descriptors {} of {} clients are served", served.size(), clients.size());
    }

    const std::size_t lines = lines_in(server.errors());
    const double cpu = server.cpu_percent(2s);
    const std::size_t new_lines = lines_in(server.errors()) - lines;
    if (cpu >= 10) fail("{:.1f} % CPU without a free descriptor", cpu);
    if (new_lines > 3) fail("{} lines of log in 2 s without a free descriptor", new_lines);
    for (const std::size_t i : served) {
      clients[i]->receive(5);
      clients[i]->echo("still served");
    }

    // The served leave, group by group, until all have had their turn.
    std::size_t turns = served.size();
    while (turns < kClientsOutside) {
      std::sort(served.rbegin(), served.rend());
      for (const std::size_t i : served)
        clients.erase(clients.begin() + static_cast<std::ptrdiff_t>(i));
      const bool someone = wait_until(2s, [&] {
        return std::any_of(clients.begin(), clients.end(),
                           [](const auto& c) { return c->hears_within(0ms); });
      });
      if (!someone)
        fail("{} left, and 2 s later none of the {} waiting is served", served.size(),
             clients.size());
      served = who_is_served(clients);
      turns += served.size();
    }
  });
}

void gone_before_accepted(const Subject& subject) {
  Command command = subject.command;
  command.descriptor_limit = 256;
  with_server(command, [](ServerProcess& server) {
    const std::size_t lines = lines_in(server.errors());
    server.freeze();
    int waiting = 0;
    try {
      for (; waiting < 1000; ++waiting) Client(server.address(), 500ms).reset();
    } catch (const Failure&) {  // its backlog is full
    }
    server.thaw();
    Client(server.address()).echo("hello");
    if (lines_in(server.errors()) > lines)
      fail("a thousand clients that had left before they were accepted took all descriptors");
    if (waiting < 500) skip("its backlog holds only {}", waiting);
  });
}

void aborted_accepts(const Subject& subject) {
  // The first ten accepts fail. A server that took that for a shortage, and paused for
  // 5 ms doubling each time, would be 4 s late.
  const Command command =
      under_strace(subject.command, {"accept,accept4:error=ECONNABORTED:when=1..10"});
  with_server(command, [](ServerProcess& server) {
    const auto start = Clock::now();
    Client(server.address()).echo("hello");
    if (ms_since(start) > 1000) {
      fail("ten aborted connections delayed the next by {:.0f} ms", ms_since(start));
    }
  });
}

void interrupted_calls(const Subject& subject) {
  // Stopping and continuing a process interrupts its waiting call (signal(7)); SIGURG
  // is ignored unless the program uses it, as Go's runtime does.
  with_server(subject.command, [&](ServerProcess& server) {
    std::atomic<bool> over = false;
    std::thread storm([&] {
      const auto end = Clock::now() + 2s;
      while (Clock::now() < end) {
        for (const int number : {SIGURG, SIGSTOP, SIGCONT}) ::kill(server.pid(), number);
        std::this_thread::sleep_for(1ms);
      }
      over = true;
    });
    try {
      while (!over) expect_clean_traffic(subject, server);
    } catch (...) {
      storm.join();
      throw;
    }
    storm.join();
  });
  const Command interrupted = under_strace(
      subject.command, {"read:error=EINTR:when=20+3",
                        "readv,recvfrom,recvmsg,write,writev,sendto,sendmsg:error=EINTR:when=5+3"});
  with_server(interrupted, [&](ServerProcess& server) { expect_clean_traffic(subject, server); });
}

std::vector<std::string> short_transfer_faults(const Subject& subject) {
  std::vector<std::string> faults;
  if (subject.short_reads)
    faults.emplace_back("enable_random name=posix/io/rw/read/reduce,probability=0.5");
  faults.emplace_back("enable_random name=posix/io/rw/write/reduce,probability=0.5");
  return faults;
}

void short_writes(const Subject& subject) {
  std::string skipped;
  // Under a sanitizer only the first part runs; that is not a skip.
  const auto unless_skipped = [&](const std::function<void()>& part) {
    try {
      part();
    } catch (const Skipped& reason) {
      skipped += std::string(skipped.empty() ? "" : "; ") + reason.what();
    }
  };
  unless_skipped([&] {
    with_tiny_send_buffers(4096, [&] {
      with_server(subject.command, [&](ServerProcess& server) {
        expect_clean_traffic(subject, server);
        Swarm late(server.address(), 1, seed());
        late.connect();
        late.exchange(
            {.bytes = 8 << 20, .largest_chunk = 1 << 20, .finish = true, .read_late = true});
        if (subject.clients > 1) {
          for (std::size_t size = 16 << 10; size <= 256 << 10; size += 16 << 10)
            expect_pending_in_order(server, size);
        }
      });
    });
  });
  unless_skipped([&] {
    if (kSanitized) return;
    const Command reduced = under_fiu(subject.command, short_transfer_faults(subject));
    with_server(reduced, [&](ServerProcess& server) {
      need_libfiu_inside(server);
      expect_clean_traffic(subject, server);
    });
  });
  if (!skipped.empty()) skip("{}", skipped);
}

namespace {

// A client loses at most its connection, and the server runs on. An error at its start
// may end it, by one of `failed_starts`; then it is started again.
void expect_single_ends(const Subject& subject, const Command& faulty,
                        const std::vector<std::string>& failed_starts) {
  constexpr int kAttempts = 500;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    try {
      with_server(faulty, [&](ServerProcess& server) {
        if (!kSanitized) need_libfiu_inside(server);
        for (int round = 0; round < 10; ++round) {
          Swarm swarm(server.address(), std::min<std::size_t>(subject.clients, 50), seed());
          swarm.exchange_or_close({.bytes = 20'000, .largest_chunk = 2'000, .finish = true});
        }
        for (int i = 0; i < 50; ++i) {  // slow requests, where there are any (07, 08)
          Client client(server.address());
          client.send("#");
          if (!client.hears_within(patience)) fail("neither an answer nor the end");
        }
      });
      return;
    } catch (const Failure& failure) {
      const std::string what = failure.what();
      const auto is_the_reason = [&what](const std::string& exit) {
        return what.find("does not listen: " + exit + ",") != std::string::npos;
      };
      if (std::none_of(failed_starts.begin(), failed_starts.end(), is_the_reason)) throw;
    }
  }
  fail("{} starts under fault injection, and not one came up", kAttempts);
}

}  // namespace

std::vector<std::string> random_error_faults(const Subject& subject) {
  std::vector<std::string> names = {"*"};
  // All points of posix/io/rw/ except those that shorten a read, such as read/reduce. A
  // name without a * is one point: "read" does not include "read/reduce".
  if (!subject.short_reads)
    names = {"read", "readv", "pread", "preadv", "write*", "pwrite*", "truncate", "ftruncate"};
  std::vector<std::string> faults = {"enable_random name=posix/io/net/*,probability=0.05"};
  for (const std::string& name : names)
    faults.push_back("enable_random name=posix/io/rw/" + name + ",probability=0.02");
  return faults;
}

void random_errors(const Subject& subject) {
  const Command faulty =
      kSanitized ? under_strace(subject.command, {"read:error=ENOMEM:when=30+30",
                                                  "write:error=EHOSTUNREACH:when=40+40"})
                 : under_fiu(subject.command, random_error_faults(subject));
  expect_single_ends(subject, faulty, {"exit code 1"});
}

void out_of_memory(const Subject& subject) {
  const Command faulty =
      under_fiu(subject.command, {"enable_random name=libc/mm/*,probability=0.05"});
  expect_single_ends(subject, faulty,
                     {"exit code 1", "exit code 127", "killed by signal 6 (Aborted)"});
}

}  // namespace battery
