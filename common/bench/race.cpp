// ./tour: every server of the chapters that runs here, and two others, under load.
//
//   build/common/race build        (the folder that holds 01-blocking/server …)
//
// With each number of connections a server is loaded twice: in a closed loop, for what a
// message costs, and in an open loop at a rate that is the same for all, for how long an
// answer takes (load.h says why). Then one table, and what it says.
#include <fmt/core.h>
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
#include "common/bench/report.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

struct Contender {
  std::string name;
  std::string model;
  std::string limit = {};  // why it may not hold all connections
  Command command = {};
  std::string skipped = {};  // why it cannot run here; empty if it can
};

struct Row {
  const Contender* contender;
  std::size_t clients;
  bool ran = false;         // and if so:
  Measurement closed = {};  // loops
  Measurement open = {};
  std::string note = {};

  std::size_t held() const { return closed.load.held; }
  bool complete() const { return ran && held() == clients; }
};

struct Terms {
  std::size_t rate = 20'000;
  std::chrono::milliseconds duration{1000};
};

// 10000 as 10,000.
std::string grouped(std::size_t number) {
  return number < 1000 ? std::to_string(number)
                       : fmt::format("{},{:03}", grouped(number / 1000), number % 1000);
}

// "04-epoll and floor"
std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " and " : ", ";
    text += names[i];
  }
  return text;
}

std::vector<Contender> chapters(const std::string& build) {
  std::vector<Contender> all = {
      {.name = "01-blocking",
       .model = "one client at a time",
       .limit = "it serves one client, and the others wait"},
      {.name = "02-thread-per-conn",
       .model = "a thread for each",
       .limit = "no more threads or descriptors"},
      {.name = "03-select",
       .model = "one thread, select",
       .limit = "FD_SETSIZE: select can watch no larger descriptor"},
      {.name = "04-epoll", .model = "one thread, epoll"},
      {.name = "05-kqueue", .model = "one thread, kqueue"},
      {.name = "06-event-loop", .model = "event loop"},
      {.name = "07-worker-pool", .model = "event loop, workers"},
      {.name = "08-netpoller", .model = "parked coroutines"},
  };
  std::vector<Contender> here;
  for (Contender& one : all) {
    const std::filesystem::path folder = std::filesystem::path(build) / one.name;
    std::getline(std::ifstream(folder / "skipped"), one.skipped);
    if (one.skipped.empty() && !std::filesystem::exists(folder / "server")) continue;
    one.command.argv = {folder / "server"};
    here.push_back(std::move(one));
  }
  return here;
}

// "go1.24.4", or nothing.
std::string go_version() {
  const Run run = run_to_end({.argv = {"go", "env", "GOVERSION"}, .environment = {}});
  return run.output.substr(0, run.output.find('\n'));
}

void add_peers(const std::string& build, std::vector<Contender>& contenders) {
  const std::string floor = build + "/common/floor-server";
  if (std::filesystem::exists(floor)) {
    contenders.push_back({.name = "floor",
                          .model = "bare epoll, no state",
                          .command = {.argv = {floor}, .environment = {}}});
  }
  // Since Go 1.24 its listeners speak Multipath TCP unless told not to, which costs.
  const std::string go = build + "/common/go-net-server";
  if (std::filesystem::exists(go)) {
    contenders.push_back({.name = "Go net",
                          .model = is_installed("go") ? go_version() : "goroutines",
                          .command = {.argv = {go, "-address", "127.0.0.1:{port}"},
                                      .environment = {"GODEBUG=multipathtcp=0"}}});
  }
}

Measurement under(const Contender& contender, std::size_t clients, const Terms& terms,
                  std::size_t rate, const std::string& where) {
  const ProgressLine line;
  LoadPlan plan;
  plan.clients = clients;
  plan.rate = rate;
  plan.warmup = std::chrono::milliseconds(250);
  plan.duration = terms.duration;
  plan.give_up = std::chrono::milliseconds(500);
  plan.on_progress = [&](const std::string& text) {
    line.show(fmt::format("{}{}, {} connections, {} loop: {}", where, contender.name,
                          grouped(clients), rate == 0 ? "closed" : "open", text));
  };
  return measure(contender.command, plan);
}

// What became of the connections that are not held, or did not last.
std::string losses(const Contender& contender, const LoadResult& load) {
  std::vector<std::string> parts;
  if (load.refused > 0) parts.push_back(grouped(load.refused) + " refused");
  if (load.unserved > 0) parts.push_back(grouped(load.unserved) + " not served");
  if (load.broken > 0) parts.push_back(grouped(load.broken) + " broken");
  if (parts.empty()) return {};
  const bool known = load.broken == 0 && !contender.limit.empty();
  return list(parts) + (known ? ": " + contender.limit : "");
}

Row run(const Contender& contender, std::size_t clients, const Terms& terms,
        const std::string& where) {
  Row row{.contender = &contender, .clients = clients};
  try {
    row.closed = under(contender, clients, terms, 0, where);
    const LoadResult& load = row.closed.load;
    row.note = losses(contender, load);
    if (load.held > 0) row.open = under(contender, clients, terms, terms.rate, where);
    row.ran = true;
    const std::size_t changed = load.mismatched_bytes + row.open.load.mismatched_bytes;
    if (changed > 0) row.note = fmt::format("WRONG: {} bytes came back changed", changed);
  } catch (const StartupError& cannot) {  // of the generator, for want of descriptors
    row.note = fmt::format("not run: {}", cannot.what());
  } catch (const std::exception& problem) {
    row.note = fmt::format("FAILED: {}", problem.what());
  }
  return row;
}

// Why the contender is not loaded with the next number of connections; empty if it is. A
// server that did not hold so many does not hold more either.
std::string why_not(const Contender& contender, const std::vector<Row>& rows) {
  const auto before = std::find_if(rows.rbegin(), rows.rend(), [&](const Row& row) {
    return row.contender == &contender && (row.ran || !contender.skipped.empty());
  });
  if (!contender.skipped.empty()) {
    return before == rows.rend() ? fmt::format("skipped: {}", contender.skipped) : "skipped";
  }
  if (before == rows.rend() || before->complete()) return {};
  return fmt::format("not run: it held {} of {}", grouped(before->held()),
                     grouped(before->clients));
}

std::vector<Row> run_all(const std::vector<Contender>& contenders,
                         const std::vector<std::size_t>& sizes, const Terms& terms) {
  std::vector<Row> rows;
  const std::size_t all = sizes.size() * contenders.size();
  for (const std::size_t clients : sizes) {
    for (const Contender& contender : contenders) {
      const std::string reason = why_not(contender, rows);
      if (reason.empty()) {
        const std::string where = fmt::format("{}/{}: ", rows.size() + 1, all);
        rows.push_back(run(contender, clients, terms, where));
      } else {
        rows.push_back({.contender = &contender, .clients = clients, .note = reason});
      }
    }
  }
  return rows;
}

std::string in_ms(std::uint64_t ns) { return fmt::format("{:.2f}", static_cast<double>(ns) / 1e6); }

// "-" for what could not be found out (without /proc).
std::string number(double value, int digits) {
  return value > 0 ? fmt::format("{:.{}f}", value, digits) : "-";
}

constexpr const char* kColumns =
    "  {:<19}{:<21}{:>7}{:>12}{:>8}{:>8}{:>8}{:>8}{:>6}{:>9}{:>10}{:>10}";

std::string text_of(const Row& row) {
  std::string text;
  if (row.ran && row.held() > 0) {
    const LoadResult& closed = row.closed.load;
    const LoadResult& open = row.open.load;
    text = fmt::format(fmt::runtime(kColumns), row.contender->name, row.contender->model,
                       grouped(closed.held),
                       (closed.bottleneck().empty() ? "" : "≥ ") +
                           grouped(static_cast<std::size_t>(closed.requests_per_second())),
                       in_ms(open.latency.quantile(0.5)),
                       in_ms(open.latency.quantile(0.99)) + (open.bottleneck().empty() ? "" : "*"),
                       in_ms(open.latency.max()), number(row.closed.cpu_us, 2),
                       number(100 * row.closed.system_share, 0),
                       row.closed.threads > 0 ? grouped(row.closed.threads) : "-",
                       number(row.closed.switches, 3), number(row.closed.kib_per_connection, 2));
    if (!row.note.empty()) text += fmt::format("\n{:<23}({})", "", row.note);
  } else {
    text = fmt::format("  {:<19}{:<21}  {}", row.contender->name, row.contender->model, row.note);
  }
  return text + "\n";
}

void print_table(const std::vector<Row>& rows, const Terms& terms) {
  utsname system = {};
  ::uname(&system);
  fmt::print(
      "{} cores, {} {} {}; servers and the load generator share them.\n"
      "64-byte messages. Requests, CPU and switches: closed loop, one message of each connection\n"
      "under way. Latency: open loop, {} messages a second in all, from when each was due.\n",
      std::thread::hardware_concurrency(), static_cast<const char*>(system.sysname),
      static_cast<const char*>(system.release), static_cast<const char*>(system.machine),
      grouped(terms.rate));
  std::size_t clients = 0;
  for (const Row& row : rows) {
    if (row.clients != clients) {
      clients = row.clients;
      fmt::print("\n{} connections\n", grouped(clients));
      fmt::print(fmt::runtime(kColumns), "", "", "held", "requests/s", "p50 ms", "p99 ms", "max ms",
                 "CPU us", "sys%", "threads", "switches", "KiB/conn");
      fmt::print("\n");
    }
    fmt::print("{}", text_of(row));
  }
  fmt::print(
      "\nOf the server, per request: CPU us, the kernel's share of it, context switches.\n"
      "KiB/conn: resident memory of an idle connection.\n");
  const auto limited = [](const Row& row) { return !row.closed.load.bottleneck().empty(); };
  if (std::any_of(rows.begin(), rows.end(), limited)) {
    fmt::print("≥: the load generator had no more to give; the server may do more.\n");
  }
  const auto late = [](const Row& row) { return !row.open.load.bottleneck().empty(); };
  if (std::any_of(rows.begin(), rows.end(), late)) {
    fmt::print("*: the generator itself was late, for want of a core: latencies are too high.\n");
  }
}

using Value = std::function<double(const Row&)>;

// Which server has least, which are within 15 % of that, and which has most: what one run
// can tell. Rows whose value is 0 have none.
std::string least_and_most(std::vector<const Row*> rows, const Value& value, const char* unit,
                           int digits) {
  std::erase_if(rows, [&](const Row* row) { return value(*row) <= 0; });
  if (rows.size() < 2) return "this run cannot tell";  // no /proc, or a generator that was late
  std::sort(rows.begin(), rows.end(),
            [&](const Row* a, const Row* b) { return value(*a) < value(*b); });
  const double least = value(*rows.front());
  const double most = value(*rows.back());
  std::vector<std::string> low;
  for (const Row* row : rows) {
    if (value(*row) <= 1.15 * least) low.push_back(row->contender->name);
  }
  if (low.size() == rows.size()) {
    return fmt::format("{:.{}f} to {:.{}f} {}: all the same, as far as one run can tell", least,
                       digits, most, digits, unit);
  }
  return fmt::format("least {} ({:.{}f} {}), most {} ({:.{}f}, {:.1f} times as much)", list(low),
                     least, digits, unit, rows.back()->contender->name, most, digits, most / least);
}

// Where the generator was late, its lateness is in the latency, and nothing can be said.
double p99_in_ms(const Row& row) {
  const LoadResult& open = row.open.load;
  return open.bottleneck().empty() ? static_cast<double>(open.latency.quantile(0.99)) / 1e6 : 0;
}

// The rows with the most connections that some server held.
std::vector<const Row*> largest_shared(const std::vector<Row>& rows) {
  std::vector<const Row*> found;
  for (const Row& row : rows) {
    if (!row.complete()) continue;
    if (!found.empty() && row.clients > found.front()->clients) found.clear();
    found.push_back(&row);
  }
  return found;
}

void print_meaning(const std::vector<Row>& rows) {
  std::vector<std::string> partly;
  for (const Row& row : rows) {
    if (!row.ran || row.complete()) continue;
    partly.push_back(fmt::format("{} held {} of {}", row.contender->name, grouped(row.held()),
                                 grouped(row.clients)));
  }
  const std::vector<const Row*> largest = largest_shared(rows);
  if (largest.size() < 2) return;
  const std::string size = grouped(largest.front()->clients);
  fmt::print("\nWhat it says\n");
  fmt::print("  Held     {} servers held {}{}\n", largest.size(), size,
             partly.empty() ? "" : "; " + list(partly));
  const auto cost = [](const Row& row) { return row.closed.cpu_us; };
  const auto memory = [](const Row& row) { return row.closed.kib_per_connection; };
  fmt::print("  Cost     of a request with {}: {}\n", size,
             least_and_most(largest, cost, "us of CPU", 1));
  fmt::print("  Latency  p99 with {}: {}\n", size, least_and_most(largest, p99_in_ms, "ms", 2));
  fmt::print("  Memory   of an idle connection: {}\n", least_and_most(largest, memory, "KiB", 2));
}

}  // namespace

int main(int argc, char** argv) {
  Terms terms;
  Options options("Races the servers under the folder BUILD with 100, 1,000 and 10,000 clients.");
  options.add("rate", terms.rate, "open loop: messages a second in all");
  options.add("duration", terms.duration, "of each measurement; there are two in a cell");
  const std::vector<std::string> arguments = options.parse_command(argc, argv);
  if (arguments.size() != 1) {
    fmt::print(stderr, "usage: {} [flags] BUILD    (flags: --help)\n", argv[0]);
    return 2;
  }
  std::vector<Contender> contenders = chapters(arguments[0]);
  if (contenders.empty()) {
    fmt::print(stderr, "{}: no chapter's server is under {}\n", argv[0], arguments[0]);
    return 1;
  }
  add_peers(arguments[0], contenders);
  const std::vector<Row> rows = run_all(contenders, {100, 1000, 10'000}, terms);
  print_table(rows, terms);
  print_meaning(rows);
  const auto bad = [](const Row& row) {
    return row.note.starts_with("FAILED") || row.note.starts_with("WRONG");
  };
  return std::any_of(rows.begin(), rows.end(), bad) ? 1 : 0;
}
