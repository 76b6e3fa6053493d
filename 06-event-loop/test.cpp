// 06-event-loop: the chapter's limit. The rest of what the server is held to is in
// common/testing/chapter_test.cpp: the battery with ten thousand clients, then eighteen thousand;
// shutdown; many connections on one thread; idle timeout and order. Its classes are tested by
// loop_test.cpp and poller_test.cpp there.
#include <vector>

#include "common/testing/chapter.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 10'000};

TEST_CASE("slow-handler-stalls: a slow request: the reply to every other client is delayed") {
  holds([] {
    const std::vector<double> delays = battery::delays_beside_a_slow_request(kServer);
    CAPTURE(delays.front());
    CHECK(delays.front() > 250);  // of 300 ms, even for the quickest
  });
}
