// Two programs from one source. Both load an echo server and print how fast it answers.
// `measure` also starts the server by a command, and prints what the server used.
//
//   build/common/echoload --clients 1000 127.0.0.1:8080                  closed loop
//   build/common/echoload --clients 1000 --rate 20000 127.0.0.1:8080     open loop
//   build/common/measure --clients 1 --idle 10000 build/04-epoll/server
//   build/common/measure --rate 20000 go-net-server -address 127.0.0.1:{port}
//
// load.h explains the two loops. `measure` prints one JSON object; ./tour bench collects
// hundreds of them. The exit code is 1 if a byte came back changed, or none came back.
#include <fmt/core.h>

#include <charconv>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "common/bench/measure.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

#ifdef STARTS_SERVER
constexpr bool kStartsServer = true;
#else
constexpr bool kStartsServer = false;
#endif

double us(std::uint64_t ns) { return static_cast<double>(ns) / 1e3; }
double ms(std::uint64_t ns) { return static_cast<double>(ns) / 1e6; }

// Accepts "127.0.0.1:8080", "[::1]:8080" and "localhost:8080". Returns false otherwise.
bool parse_target(std::string_view text, std::string& host, std::uint16_t& port) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data() + colon + 1, last, port);
  return error == std::errc() && end == last && port != 0;
}

void add_flags(Options& options, LoadPlan& plan) {
  options.add("clients", plan.clients, "connections that send");
  options.add("idle", plan.idle, "idle connections beside them");
  options.add("slow", plan.slow,
              "connections that ask for slow work (#), for a server with --work");
  options.add("size", plan.size, "bytes of a message");
  options.add("threads", plan.threads, "threads of the generator; they share the connections");
  options.add("depth", plan.depth, "messages under way on a connection (closed loop)");
  options.add("rate", plan.rate, "messages a second on all connections; without it a closed loop");
  options.add("warmup", plan.warmup, "time of load before measuring begins");
  options.add("duration", plan.duration, "time of measuring");
}

std::string as_text(const LoadPlan& plan, const LoadResult& r) {
  std::string text = fmt::format(
      "{} connections{}{}, messages of {} bytes, {}; {} after {} of warm-up\n"
      "answers      {:.0f} a second\n"
      "latency, ms  p50 {:.3f}  p90 {:.3f}  p99 {:.3f}  p99.9 {:.3f}  max {:.3f}\n"
      "connections  {} refused, {} not served, {} broken, {} idle ones broken{}\n"
      "messages     {} unanswered, {} bytes came back changed\n"
      "generator    {:.0f} % of a core",
      r.held, r.idle_held > 0 ? fmt::format(", {} idle ones", r.idle_held) : "",
      plan.slow > 0 ? fmt::format(", {} slow ones ({} answers)", plan.slow, r.slow_answered) : "",
      plan.size,
      plan.rate > 0 ? fmt::format("open loop at {} a second", plan.rate)
                    : fmt::format("closed loop of depth {}", plan.depth),
      to_text(plan.duration), to_text(plan.warmup), r.requests_per_second(),
      ms(r.latency.quantile(0.5)), ms(r.latency.quantile(0.9)), ms(r.latency.quantile(0.99)),
      ms(r.latency.quantile(0.999)), ms(r.latency.max()), r.refused, r.unserved, r.broken,
      r.idle_lost, r.first_problem.empty() ? "" : fmt::format(" (first: {})", r.first_problem),
      r.unanswered, r.mismatched_bytes, 100 * r.cpu_share);
  if (plan.rate > 0) {
    text += fmt::format(", sends late by p50 {:.3f} ms, p99 {:.3f} ms",
                        ms(r.lateness.quantile(0.5)), ms(r.lateness.quantile(0.99)));
  }
  const std::string why = r.bottleneck();
  return text +
         (why.empty() ? "\n" : fmt::format("\nThe generator was the bottleneck: {}.\n", why));
}

// One JSON object. The texts are strerror's and ours: nothing in them needs an escape.
std::string as_json(const LoadPlan& plan, const Measurement& m) {
  const LoadResult& r = m.load;
  std::string text = fmt::format(
      "{{\"clients\": {}, \"idle\": {}, \"slow\": {}, \"size\": {}, \"threads\": {}, \"depth\": "
      "{}, "
      "\"rate\": {}, \"seconds\": {:.3f},\n \"held\": {}, \"idle_held\": {}, \"refused\": {}, "
      "\"unserved\": {}, \"broken\": {}, \"idle_lost\": {}, \"first_problem\": \"{}\",\n "
      "\"answered\": {}, \"requests_per_second\": {:.1f}, \"measured\": {}, \"unanswered\": {}, "
      "\"slow_answered\": {}, \"mismatched_bytes\": {},\n \"p50_us\": {:.1f}, \"p90_us\": {:.1f}, "
      "\"p99_us\": {:.1f}, \"p99_9_us\": {:.1f}, \"max_us\": {:.1f},\n \"late_p50_us\": {:.1f}, "
      "\"late_p99_us\": {:.1f}, \"late_max_us\": {:.1f}, \"generator_cpu_share\": {:.3f}, "
      "\"bottleneck\": \"{}\"",
      plan.clients, plan.idle, plan.slow, plan.size, plan.threads, plan.depth, plan.rate, r.seconds,
      r.held, r.idle_held, r.refused, r.unserved, r.broken, r.idle_lost, r.first_problem,
      r.answered, r.requests_per_second(), r.latency.count(), r.unanswered, r.slow_answered,
      r.mismatched_bytes, us(r.latency.quantile(0.5)), us(r.latency.quantile(0.9)),
      us(r.latency.quantile(0.99)), us(r.latency.quantile(0.999)), us(r.latency.max()),
      us(r.lateness.quantile(0.5)), us(r.lateness.quantile(0.99)), us(r.lateness.max()),
      r.cpu_share, r.bottleneck());
  if (kStartsServer) {
    text += fmt::format(
        ",\n \"cpu_us\": {:.3f}, \"switches\": {:.4f}, \"system_share\": {:.3f}, \"cores\": "
        "{:.3f}, "
        "\"server_threads\": {}, \"kib_per_connection\": {:.3f}, \"resident_kib\": {}",
        m.cpu_us, m.switches, m.system_share, m.cores, m.threads, m.kib_per_connection,
        m.resident / 1024);
  }
  return text + "}\n";
}

int misuse(const char* program, const std::string& reason) {
  fmt::print(stderr, "{}: {}\nusage: {} [flags] {}    (flags: --help)\n", program, reason, program,
             kStartsServer ? "CMD..." : "HOST:PORT");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  LoadPlan plan;
  bool json = kStartsServer;
  Options options(kStartsServer
                      ? "Starts the server CMD, loads it, and prints its figures as JSON."
                      : "Loads the echo server at HOST:PORT, and prints how fast it answers.");
  add_flags(options, plan);
  if (!kStartsServer) options.add("json", json, "print one JSON object");
  const std::vector<std::string> rest = options.parse_command(argc, argv);
  std::string host;
  std::uint16_t port = 0;
  if (rest.empty()) {
    return misuse(argv[0], kStartsServer ? "no command to start a server with, after the flags"
                                         : "no HOST:PORT after the flags");
  }
  if (!kStartsServer && (rest.size() > 1 || !parse_target(rest[0], host, port))) {
    return misuse(argv[0], fmt::format("'{}' is not HOST:PORT", fmt::join(rest, " ")));
  }
  if (plan.threads > plan.clients) return misuse(argv[0], "more --threads than --clients");
  if (plan.rate > 0 && plan.depth > 1) {
    return misuse(argv[0], "--depth is for a closed loop, --rate for an open one");
  }
  try {
    plan.on_progress = show_progress;
    Measurement m;
    if (kStartsServer) {
      m = measure({.argv = rest, .environment = {}}, plan);
    } else {
      m.load = run_load(resolve(host, port), plan);
    }
    show_progress("");
    fmt::print("{}", json ? as_json(plan, m) : as_text(plan, m.load));
    return m.load.mismatched_bytes > 0 || m.load.answered == 0 ? 1 : 0;
  } catch (const std::exception& error) {
    show_progress("");
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
