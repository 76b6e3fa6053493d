// ./tour break 01: two clients, and a server that serves one at a time.
#include <fmt/core.h>

#include <string>

#include "common/testing/client.h"
#include "common/testing/server_process.h"

namespace {

// The connections to the server's port as the kernel sees them.
void show_sockets(const ServerProcess& server) {
  const std::string address = to_text(server.address());
  const std::string port = address.substr(address.rfind(':'));
  const std::string filter = fmt::format("sport = {} or dport = {}", port, port);
  fmt::print("\n$ ss -tn '{}'\n", filter);
  if (is_installed("ss")) {
    fmt::print("{}\n", run_to_end({.argv = {"ss", "-tn", filter}, .environment = {}}).output);
  } else {
    fmt::print("(ss is not installed here; Debian has it in iproute2)\n\n");
  }
}

}  // namespace

int main() {
  try {
    ServerProcess server({.argv = {SERVER}, .environment = {}});
    fmt::print("The server listens on {}.\n", to_text(server.address()));

    Client one(server.address());
    fmt::print("Client one connects and sends \"hello\": its reply comes after {:.1f} ms.\n",
               one.echo("hello"));

    Client two(server.address());
    fmt::print("Client two connects: connected.\n");
    two.send("anybody there?");
    const auto start = Clock::now();
    fmt::print("Client two sends \"anybody there?\": ");
    fmt::print("{}\n", two.hears_within(2s) ? "a reply." : "no reply in 2 s.");
    show_sockets(server);

    one.close();
    fmt::print("Client one leaves.\n");
    two.receive(14);
    fmt::print("Client two has its reply, {:.0f} ms after it asked.\n", ms_since(start));
  } catch (const std::exception& problem) {
    fmt::print(stderr, "{}\n", problem.what());
    return 1;
  }
}
