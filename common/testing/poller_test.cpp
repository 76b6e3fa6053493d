// The poller of 06 and 07 alone, made of epoll or of kqueue. Each of the two chapters compiles
// this file with its own headers.
#include <sys/socket.h>

#include <array>
#include <string>

#include "common/socket/socket.h"
#include "common/testing/holds.h"
#include "poller.h"

namespace {

// Two connected sockets. The poller watches the first.
struct Ends {
  Ends() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) fail("socketpair");
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
    set_non_blocking(ours);
    set_non_blocking(theirs);
  }
  Fd ours;
  Fd theirs;
};

// "r", "w" or "rw": what one wait reports about the only watched descriptor.
std::string reported(Poller& poller, milliseconds limit = 0ms) {
  std::string text;
  for (const Ready& ready : poller.wait(limit)) {
    if (ready.readable) text += 'r';
    if (ready.writable) text += 'w';
  }
  return text;
}

constexpr Interest kWrite{.write = true};
constexpr Interest kBoth{.read = true, .write = true};

}  // namespace

TEST_CASE("poller-interest: interest changes: only what is watched is reported") {
  holds([] {
    Poller poller;
    const Ends ends;
    const int fd = ends.ours.get();
    (void)write_some(ends.theirs, "hello");
    CHECK(reported(poller).empty());
    REQUIRE(poller.set_interest(fd, kNone, kRead));
    CHECK(reported(poller) == "r");
    CHECK(reported(poller) == "r");  // level-triggered: it is still there
    REQUIRE(poller.set_interest(fd, kRead, kBoth));
    const std::string both = reported(poller);
    CHECK((both == "rw" || both == "wr"));
    REQUIRE(poller.set_interest(fd, kBoth, kWrite));
    CHECK(reported(poller) == "w");
    REQUIRE(poller.set_interest(fd, kWrite, kNone));
    CHECK(reported(poller).empty());
    REQUIRE(poller.set_interest(fd, kNone, kRead));  // and back
    CHECK(reported(poller) == "r");
  });
}

TEST_CASE("poller-no-interest: the peer of an unwatched descriptor closes: nothing is reported") {
  holds([] {
    Poller poller;
    Ends ends;
    REQUIRE(poller.set_interest(ends.ours.get(), kNone, kRead));
    REQUIRE(poller.set_interest(ends.ours.get(), kRead, kNone));
    ends.theirs.reset();
    CHECK(reported(poller).empty());
    REQUIRE(poller.set_interest(ends.ours.get(), kNone, kRead));
    CHECK(reported(poller).find('r') != std::string::npos);
  });
}

TEST_CASE("poller-limit: nothing is ready: a wait ends at its limit") {
  holds([] {
    Poller poller;
    const auto start = Clock::now();
    CHECK(reported(poller, 30ms).empty());
    CHECK(ms_since(start) >= 30);
    CHECK(ms_since(start) < 3000);
  });
}
