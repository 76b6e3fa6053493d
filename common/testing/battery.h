// The battery: what every echo server must survive, one behaviour a function.
//
// Each function starts the server afresh, attacks it over loopback, looks at it
// from outside, and stops it. It returns when the behaviour holds, throws Failure
// with what was seen when it does not, and Skipped where it cannot be tried. It
// knows nothing of how the server is made: `./tour check` runs the same functions
// against any server in any language.
//
// Beside each is the one-line mistake that it must catch. broken_server.cpp makes
// them all, and test.cpp checks that each is caught.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/testing/outcome.h"
#include "common/testing/server_process.h"

// A server under test.
struct Subject {
  Command command;
  // How many it serves at once. With 1, a server that serves one after the other, the
  // checks skip the parts that need a second client at the same time.
  std::size_t clients = 1000;
  // If false, no fault may shorten its reads: the server relies on a short read having
  // taken everything (epoll(7)).
  bool short_reads = true;
};

namespace battery {

using Behaviour = void (*)(const Subject&);

// Bytes (battery.cpp).
void one_byte_at_a_time(const Subject&);      // waits for a full buffer before it answers
void any_bytes_any_size(const Subject&);      // treats the data as a C string
void arbitrary_chunks(const Subject&);        // echoes only the first part of a large read
void half_close(const Subject&);              // closes on POLLRDHUP with bytes unread
void half_close_slow_reader(const Subject&);  // closes at EOF with output pending
void many_at_once(const Subject&);            // sends bytes to the wrong connection
void isolation(const Subject&);               // blocks in a write to one client
void back_pressure(const Subject&);           // reads on while the output cannot leave
void idle(const Subject&);                    // leaves write interest armed, or polls

// Faults (battery_faults.cpp).
void reset(const Subject&);                  // exits on one client's error
void close_without_reading(const Subject&);  // lets SIGPIPE kill it
void churn(const Subject&);                  // forgets to close, or to free
void out_of_descriptors(const Subject&);     // accepts again at once: spins
void gone_before_accepted(const Subject&);   // keeps accepting, and closes none
void aborted_accepts(const Subject&);        // pauses, or exits, for a connection that died
void interrupted_calls(const Subject&);      // treats EINTR as an error
void short_writes(const Subject&);           // assumes that one write takes all
void random_errors(const Subject&);          // dies on an unknown errno
void out_of_memory(const Subject&);          // dies when an allocation fails

// The process (battery_process.cpp).
void misuse(const Subject&);               // reads "banana" as port 0
void port_in_use(const Subject&);          // reports it on stdout, or exits with 0
void stop_idle(const Subject&);            // ignores SIGTERM while clients are connected
void stop_busy(const Subject&);            // drops unflushed output at SIGTERM
void stop_stuck(const Subject&);           // waits for ever for a client to read
void stop_unacknowledged(const Subject&);  // treats what is written as received
void stop_asked_again(const Subject&);     // lets a signal handler use what is gone
void idle_timeout(const Subject&);         // starts no timer, or never starts it again
void slow_handler(const Subject&);         // does the slow work where it stalls the rest
void order(const Subject&);                // lets a quick request overtake a slow one

// The start, and a stop that the start decides (battery_start.cpp).
void signals_blocked(const Subject&);    // keeps the mask that it inherits
void interrupt_ignored(const Subject&);  // handles a signal that it inherits as ignored
void process_one(const Subject&);        // relies on a signal's default action
void keep_alive(const Subject&);         // keeps a connection whose peer has vanished
void stop_blocked(const Subject&);       // dies on a second signal, or never ends

// Stopping and silence, with clients that make it hard (battery_stop.cpp).
void idle_slow_reader(const Subject&);  // waits for POLLOUT, which comes late
void idle_left(const Subject&);         // leaves a closed connection's timer running
void stop_door(const Subject&);         // keeps listening while it serves the last
void stop_shortage(const Subject&);     // closes the listener on clients in the backlog
void stop_flood(const Subject&);        // accepts until the backlog is empty, however long
void stop_stalls(const Subject&);       // counts two events of a timer as a period

struct Named {
  const char* id;  // for --only, and for whatever refers to a behaviour: it never changes
  const char* title;
  Behaviour run;
  const char* flags;  // the flag that it needs ("--work"), or ""
};
const std::vector<Named>& all();

// Starts the subject's server, lets `attack` at it, and checks that it is alive and
// well after that. A Failure also says what became of the server.
void with_server(const Command& command, const std::function<void(ServerProcess&)>& attack);

// The delays in ms, sorted, of 200 quick requests while one client's request keeps
// the server at work for 300 ms; slow_handler compares them with what 07 and 08 promise.
std::vector<double> delays_beside_a_slow_request(const Subject& subject);

// The faults that short_writes and random_errors inject into the subject's calls, as
// fiu-run commands. If its short_reads is false, none of them shortens a read.
std::vector<std::string> short_transfer_faults(const Subject& subject);
std::vector<std::string> random_error_faults(const Subject& subject);

// What misuse expects of one call: an exit code, nothing on stdout, a first line on
// stderr that holds `says`.
void expect_refusal(const Command& command, int exit_code, const std::string& says);

// The exit code 0 within `limit`, or a Failure that says what happened instead.
void expect_clean_exit(ServerProcess& server, milliseconds limit, const char* when);

// A seed: `run_seed` unless it is 0, or else the environment's SEED, or else a new one.
std::uint64_t seed();
inline std::size_t run_seed = 0;

}  // namespace battery
