// For the test of a chapter. It defines kServer, and is compiled together with
// chapter_test.cpp, which holds the test cases that several chapters share.
#pragma once

#include <cstddef>
#include <vector>

#include "common/testing/battery.h"
#include "common/testing/client.h"
#include "common/testing/holds.h"
#include "common/testing/server_process.h"

// The chapter's server. test.cpp of the chapter defines it.
extern const Subject kServer;

// `count` clients, connected by the kernel; the server need not have accepted them.
inline std::vector<Client> connect_clients(const Address& server, std::size_t count) {
  std::vector<Client> clients;
  clients.reserve(count);
  while (clients.size() < count) clients.emplace_back(server);
  return clients;
}

inline void expect_exit_0(ServerProcess& server, milliseconds limit) {
  const auto exit = server.wait_for_exit(limit);
  REQUIRE((exit ? exit->text() : "still running") == "exit code 0");
}
