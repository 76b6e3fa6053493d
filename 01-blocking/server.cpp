// 01-blocking: an echo server that serves one client at a time.
//
// accept, then read and write until the client has finished, then accept again. The
// program is always in one of these three calls, and each sleeps as long as it takes.
// That is all there is to understand, and it is also what is wrong with it.

#include <array>
#include <chrono>
#include <exception>
#include <string_view>
#include <thread>

#include "common/socket/options.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"

namespace {

// Writes all of `data`. One write may take less, if a signal interrupts it.
// Returns false if the client is gone.
bool write_all(const Fd& connection, std::string_view data) {
  while (!data.empty()) {
    const IoResult out = write_some(connection, data);
    if (out.status != Io::ok) return false;
    data.remove_prefix(out.size);
  }
  return true;
}

// Echoes until the client has finished sending (Io::end) or is gone. At the end
// nothing is pending, because each read is written back before the next.
void echo(const Fd& connection) {
  std::array<char, 16 * 1024> buffer;
  for (;;) {
    const IoResult in = read_some(connection, buffer);
    if (in.status != Io::ok) return;
    if (!write_all(connection, {buffer.data(), in.size})) return;
  }
}

// Without a free descriptor the connection stays in the backlog. No client is being
// served that could free one by leaving, so the server can only try again later.
// To try at once would be a busy loop.
void wait_for_resources(int error) {
  log_line("cannot accept: {}; trying again in 1 s", error_text(error));
  std::this_thread::sleep_for(std::chrono::seconds(1));
}

void serve(const Fd& listener) {
  for (;;) {
    const Accepted next = accept_from(listener);
    if (next.status == Io::ok) {
      echo(next.connection);  // closed when `next` goes out of scope
    } else {
      wait_for_resources(next.error);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options("An echo server that serves one client at a time.");
  options.add(endpoint);
  options.parse(argc, argv);

  try {
    keep_standard_descriptors();
    ignore_sigpipe();
    die_of_stop_signals();
    raise_descriptor_limit();
    const Fd listener = listen_on(resolve(endpoint.host, endpoint.port));
    announce(listener);
    serve(listener);
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
