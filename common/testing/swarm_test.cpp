// What a swarm says when an echo is wrong.
#include "common/testing/swarm.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "common/socket/socket.h"

TEST_CASE("wrong-echo: an echo is wrong: the swarm names the client, the byte and the seed") {
  // What the swarm says when the server gives this answer to the 64 bytes after the greeting.
  const auto failure_on = [](const std::function<std::string(std::string)>& answer) {
    const Fd listener = listen_on(resolve("127.0.0.1", 0));
    std::thread server([&] {
      const Fd client = accept_from(listener).connection;
      std::string buffer(100, '\0');
      for (IoResult in = read_some(client, buffer); in.status == Io::ok && in.size > 0;
           in = read_some(client, buffer)) {
        const std::string text = buffer.substr(0, in.size);
        const std::string back = in.size == 64 ? answer(text) : text;
        if (back.empty()) return;
        write_some(client, back);
      }
    });
    std::string what = "it passed";
    const milliseconds usual = std::exchange(patience, 1000ms);
    {
      Swarm swarm(local_address(listener), 1, 7);
      try {
        swarm.connect();
        for (int i = 0; i < 2; ++i) {
          swarm.exchange({.bytes = 64, .smallest_chunk = 64, .largest_chunk = 64});
        }
      } catch (const std::exception& failure) {
        what = failure.what();
      }
    }
    patience = usual;
    server.join();
    return what;
  };
  const std::string changed = failure_on([](std::string text) {
    std::reverse(text.begin() + 40, text.end());
    return text;
  });
  CHECK(changed.starts_with("client 1 of 1: byte 0x"));
  CHECK(changed.ends_with(" came, after 56 bytes received, 80 of 80 sent (seed 7)"));
  CHECK(failure_on([](const std::string& text) { return text.substr(1); }).find("byte 0x") !=
        std::string::npos);
  CHECK(failure_on([](const std::string& text) { return text.substr(0, 63); }) ==
        "client 1 of 1: nothing moved for 1000 ms; 1 of 1 clients are not done, after 79 bytes "
        "received, 80 of 80 sent (seed 7)");
  CHECK(failure_on([](const std::string& text) { return text + text; }) != "it passed");
  CHECK(failure_on([](const std::string&) { return ""; }) ==
        "client 1 of 1: closed by the server, after 16 bytes received, 80 of 80 sent (seed 7)");
}
