// ./tour: loads every server of the chapters that runs here, and two others.
//
//   build/common/race build        (the folder that holds 01-blocking/server …)
//
// Each server is loaded twice with each number of connections: in a closed loop for what a
// message costs, and in an open loop for how long an answer takes (load.h says why). Each
// row is printed at once. The last lines rank the servers.
#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/bench/measure.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

struct Contender {
  std::string name;
  std::string model;
  std::vector<std::string> argv;  // from the build folder
  std::string limit = {};         // why it may not hold all connections
  std::string out = {};           // why it does not run, or stopped; otherwise empty
  std::vector<std::string> environment = {};
};

struct Row {
  const Contender* contender;
  std::size_t clients;
  Measurement closed = {};  // loops
  Measurement open = {};
};

// 10000 as 10,000.
std::string grouped(std::size_t number) {
  return number < 1000 ? std::to_string(number)
                       : fmt::format("{},{:03}", grouped(number / 1000), number % 1000);
}

// The servers that are built here, and those that are skipped here, with the reason.
std::vector<Contender> contenders(const std::string& build) {
  std::vector<Contender> all = {
      {"01-blocking", "one client at a time", {}, "it serves one client at a time"},
      {"02-thread-per-conn", "a thread for each", {}, "no more threads or descriptors"},
      {"03-select",
       "one thread, select",
       {},
       "FD_SETSIZE: select cannot watch a larger descriptor"},
      {"04-epoll", "one thread, epoll", {}},
      {"05-kqueue", "one thread, kqueue", {}},
      {"06-event-loop", "event loop", {}},
      {"07-worker-pool", "event loop, workers", {}},
      {"08-netpoller", "parked coroutines", {}},
      {"floor", "bare epoll, no state", {"common/floor-server"}},
      // Since Go 1.24 listeners use Multipath TCP unless told otherwise, which costs time.
      {"Go net",
       "goroutines",
       {"common/go-net-server", "-address", "127.0.0.1:{port}"},
       {},
       {},
       {"GODEBUG=multipathtcp=0"}},
  };
  std::erase_if(all, [&](Contender& one) {
    if (one.argv.empty()) one.argv = {one.name + "/server"};
    one.argv[0] = build + "/" + one.argv[0];
    std::getline(std::ifstream(build + "/" + one.name + "/skipped"), one.out);
    if (!one.out.empty()) one.out = "skipped: " + one.out;
    return one.out.empty() && !std::filesystem::exists(one.argv[0]);
  });
  return all;
}

Measurement under(const Contender& contender, LoadPlan plan) {
  plan.on_progress = [&](const std::string& text) {
    show_progress(fmt::format("{}, {} connections, {} loop: {}", contender.name,
                              grouped(plan.clients), plan.rate == 0 ? "closed" : "open", text));
  };
  Measurement m = measure({.argv = contender.argv, .environment = contender.environment}, plan);
  if (m.load.mismatched_bytes > 0) fail("{} bytes came back changed", m.load.mismatched_bytes);
  return m;
}

// Why connections are missing: refused, not served or broken.
std::string losses(const Contender& contender, const LoadResult& load) {
  std::vector<std::string> parts;
  if (load.refused > 0) parts.push_back(grouped(load.refused) + " refused");
  if (load.unserved > 0) parts.push_back(grouped(load.unserved) + " not served");
  if (load.broken > 0) parts.push_back(grouped(load.broken) + " broken");
  const bool known = !parts.empty() && load.broken == 0 && !contender.limit.empty();
  return fmt::format("{}{}", fmt::join(parts, " and "), known ? ": " + contender.limit : "");
}

constexpr const char* kColumns =
    "  {:<19}{:<21}{:>7}{:>12}{:>8}{:>8}{:>8}{:>8}{:>6}{:>9}{:>10}{:>10}\n";

std::string in_ms(std::uint64_t ns) { return fmt::format("{:.2f}", static_cast<double>(ns) / 1e6); }

// "-" where the figure is unknown (without /proc).
std::string number(double value, int digits) {
  return value > 0 ? fmt::format("{:.{}f}", value, digits) : "-";
}

void print(const Row& row) {
  const LoadResult& closed = row.closed.load;
  const LoadResult& open = row.open.load;
  fmt::print(fmt::runtime(kColumns), row.contender->name, row.contender->model,
             grouped(closed.held),
             (closed.bottleneck().empty() ? "" : "≥ ") +
                 grouped(static_cast<std::size_t>(closed.requests_per_second())),
             in_ms(open.latency.quantile(0.5)),
             in_ms(open.latency.quantile(0.99)) + (open.bottleneck().empty() ? "" : "*"),
             in_ms(open.latency.max()), number(row.closed.cpu_us, 2),
             number(100 * row.closed.system_share, 0),
             row.closed.threads > 0 ? grouped(row.closed.threads) : "-",
             number(row.closed.switches, 3), number(row.closed.kib_per_connection, 2));
}

// Loads the contender in both loops, adds its row and prints it. A server that did not hold
// all connections is not loaded with more. Throws Skipped with the reason if it does not run.
void run(Contender& contender, const LoadPlan& plan, std::size_t rate, std::vector<Row>& rows) {
  if (!contender.out.empty()) skip("{}", contender.out);
  Row row{.contender = &contender, .clients = plan.clients};
  row.closed = under(contender, plan);
  const std::size_t held = row.closed.load.held;
  if (held < plan.clients) {
    contender.out = fmt::format("not run: it held {} of {}", grouped(held), grouped(plan.clients));
  }
  LoadPlan open = plan;
  open.rate = rate;
  if (held > 0) row.open = under(contender, open);
  rows.push_back(row);
  show_progress("");
  const std::string note = losses(contender, row.closed.load);
  if (held == 0) skip("{}", note);
  print(row);
  if (!note.empty()) fmt::print("{:<23}({})\n", "", note);
}

// "04-epoll 3.1, 03-select 3.3 …": the servers sorted by a figure. A figure of 0 is unknown
// (no /proc, or the generator was late) and is left out.
std::string ranked(std::vector<Row> rows, const std::function<double(const Row&)>& figure) {
  std::erase_if(rows, [&](const Row& row) { return figure(row) <= 0; });
  std::sort(rows.begin(), rows.end(),
            [&](const Row& a, const Row& b) { return figure(a) < figure(b); });
  std::string text;
  for (const Row& row : rows) {
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", row.contender->name, figure(row));
  }
  return text.empty() ? "unknown" : text;
}

// Ranks the servers that held the largest number of connections.
void print_meaning(std::vector<Row> rows) {
  std::size_t most = 0;
  std::erase_if(rows, [](const Row& row) { return row.closed.load.held < row.clients; });
  for (const Row& row : rows) most = std::max(most, row.clients);
  std::erase_if(rows, [&](const Row& row) { return row.clients < most; });
  if (rows.size() < 2) return;
  // A latency that includes the generator's own lateness is not the server's.
  const auto p99 = [](const Row& row) {
    const LoadResult& open = row.open.load;
    return open.bottleneck().empty() ? static_cast<double>(open.latency.quantile(0.99)) / 1e6 : 0;
  };
  fmt::print(
      "\nRanking with {} connections (in one run, differences below 15 % mean nothing)\n"
      "  {} servers held them all\n  CPU us    {}\n  p99 ms    {}\n  KiB/conn  {}\n",
      grouped(most), rows.size(), ranked(rows, [](const Row& row) { return row.closed.cpu_us; }),
      ranked(rows, p99),
      ranked(rows, [](const Row& row) { return row.closed.kib_per_connection; }));
}

}  // namespace

int main(int argc, char** argv) {
  LoadPlan plan;
  plan.warmup = std::chrono::milliseconds(250);
  plan.duration = std::chrono::milliseconds(1000);
  plan.give_up = std::chrono::milliseconds(500);
  std::size_t rate = 20'000;
  Options options("Loads the servers in the folder BUILD with 100, 1,000 and 10,000 clients.");
  options.add("rate", rate, "messages a second on all connections, in the open loop");
  options.add("duration", plan.duration, "time of each measurement; a row needs two");
  const std::vector<std::string> arguments = options.parse_command(argc, argv);
  if (arguments.size() != 1) {
    fmt::print(stderr, "usage: {} [flags] BUILD    (flags: --help)\n", argv[0]);
    return 2;
  }
  std::vector<Contender> all = contenders(arguments[0]);
  if (all.empty()) {
    fmt::print(stderr, "{}: no server in {}\n", argv[0], arguments[0]);
    return 1;
  }
  utsname system = {};
  ::uname(&system);
  fmt::print(
      "{} cores, {} {} {}; servers and the load generator share them.\n"
      "64-byte messages. Requests, CPU and switches: closed loop, one message under way on each\n"
      "connection. Latency: open loop, {} messages a second, counted from when each was due.\n",
      std::thread::hardware_concurrency(), static_cast<const char*>(system.sysname),
      static_cast<const char*>(system.release), static_cast<const char*>(system.machine),
      grouped(rate));
  std::vector<Row> rows;
  bool failed = false;
  for (const std::size_t clients : {100u, 1'000u, 10'000u}) {
    plan.clients = clients;
    fmt::print("\n{} connections\n", grouped(clients));
    fmt::print(fmt::runtime(kColumns), "", "", "held", "requests/s", "p50 ms", "p99 ms", "max ms",
               "CPU us", "sys%", "threads", "switches", "KiB/conn");
    for (Contender& contender : all) {
      const auto print_reason = [&](const char* kind, const char* reason) {
        show_progress("");
        fmt::print("  {:<19}{:<21}  {}{}\n", contender.name, contender.model, kind, reason);
      };
      try {
        run(contender, plan, rate, rows);
      } catch (const Skipped& reason) {
        print_reason("", reason.what());
      } catch (const StartupError& reason) {  // the generator lacks descriptors
        print_reason("not run: ", reason.what());
      } catch (const std::exception& problem) {
        print_reason("FAILED: ", problem.what());
        failed = true;
      }
      (void)std::fflush(stdout);
    }
  }
  fmt::print(
      "\nThe server's, per request: CPU us, sys% (the kernel's share of it), context switches.\n"
      "KiB/conn: resident memory of an idle connection.\n"
      "≥: the load generator was at its limit; the server may be faster.\n"
      "*: the load generator lacked a core and was late itself; latencies are too high.\n");
  print_meaning(rows);
  return failed ? 1 : 0;
}
