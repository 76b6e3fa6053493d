// ./tour: every chapter's server under 1, 100 and 1,000 clients, and one table.
//
//   build/common/race build        (the folder that holds 01-blocking/server …)
#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "common/socket/options.h"
#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/server_process.h"
#include "common/testing/swarm.h"

namespace {

struct Chapter {
  const char* name;
  const char* model;
};

constexpr Chapter kChapters[] = {
    {"01-blocking", "one client at a time"},
    {"02-thread-per-conn", "a thread for each client"},
    {"03-select", "one thread, select"},
    {"04-epoll", "one thread, epoll"},
    {"05-kqueue", "one thread, kqueue"},
    {"06-event-loop", "one thread, event loop"},
    {"07-worker-pool", "event loop and workers"},
    {"08-netpoller", "parked coroutines"},
};

constexpr int kMessages = 20;  // of each client
constexpr std::size_t kMessageSize = 64;

// A line that the next one replaces; nothing where stderr is not a terminal.
void progress(const std::string& text) {
  if (::isatty(STDERR_FILENO) == 1) fmt::print(stderr, "\r\033[K{}", text);
}

// What a second client meets while a first one is connected and silent.
std::string fate_of_client_two(const Command& command) {
  ServerProcess server(command);
  Client first(server.address());
  first.echo("hello");
  Client second(server.address());
  const auto start = Clock::now();
  second.send("hello");
  if (second.hears_within(500ms)) return fmt::format("served in {:.0f} us", 1000 * ms_since(start));
  first.close();
  return second.hears_within(500ms) ? "waits until client one leaves" : "is never served";
}

std::string row(const Chapter& chapter, const Command& command, std::size_t clients,
                const std::string& client_two) {
  const std::string start = fmt::format("{:<20}{:<26}{:>7}", chapter.name, chapter.model, clients);
  ServerProcess server(command);
  const std::size_t resident_before = server.usage().resident;
  Swarm swarm(server.address(), clients, battery::seed());
  const std::string doing = fmt::format("{}: {} clients", chapter.name, clients);
  swarm.on_progress = [&](std::size_t done) {
    progress(fmt::format("{}, {} served", doing, done));
  };
  progress(doing);
  const std::size_t held = swarm.connect_as_many_as_it_serves(1s);
  for (int i = 0; i < kMessages; ++i) {
    swarm.exchange(
        {.bytes = kMessageSize, .smallest_chunk = kMessageSize, .largest_chunk = kMessageSize});
  }
  const Usage usage = server.usage();
  return fmt::format("{}{:>7}{:>10}{:>9}{:>10.1f}{:>10.1f}  {}\n", start, held, held * kMessages,
                     usage.threads, double(usage.resident) / (1 << 20),
                     double(usage.resident - resident_before) / double(held) / 1024, client_two);
}

}  // namespace

int main(int argc, char** argv) {
  Options options("Drives the servers under the folder BUILD with 1, 100 and 1,000 clients.");
  const std::vector<std::string> arguments = options.parse_command(argc, argv);
  if (arguments.size() != 1) {
    fmt::print(stderr, "usage: {} BUILD\n", argv[0]);
    return 2;
  }

  std::string table =
      fmt::format("{:<20}{:<26}{:>7}{:>7}{:>10}{:>9}{:>10}{:>10}  {}\n", "chapter", "model",
                  "clients", "held", "messages", "threads", "MiB", "KiB/held", "client two");
  bool all_well = true;
  int found = 0;
  for (const Chapter& chapter : kChapters) {
    const std::string program = fmt::format("{}/{}/server", arguments[0], chapter.name);
    if (!std::filesystem::exists(program)) continue;
    ++found;
    const Command command{.argv = {program}, .descriptor_limit = 0, .environment = {}};
    try {
      const std::string client_two = fate_of_client_two(command);
      for (const std::size_t clients : {1u, 100u, 1000u})
        table += row(chapter, command, clients, client_two);
    } catch (const std::exception& problem) {
      all_well = false;
      table += fmt::format("{:<20}{}\n", chapter.name, problem.what());
    }
  }
  progress("");
  if (found == 0) {
    fmt::print(stderr, "{}: no chapter's server is under {}\n", argv[0], arguments[0]);
    return 1;
  }
  fmt::print("{}", table);
  return all_well ? 0 : 1;
}
