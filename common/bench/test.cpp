// The load generator is tested on servers whose figures are known beforehand.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/bench/histogram.h"
#include "common/bench/load.h"
#include "common/bench/measure.h"
#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/holds.h"
#include "common/testing/server_process.h"

namespace {

const Command kSound{.argv = {BROKEN_SERVER}, .environment = {}};  // without --fault

constexpr double kMs = 1e6;  // in ns
double ms(std::uint64_t ns) { return static_cast<double>(ns) / kMs; }

// Takes `connections` connections, each with a thread that answers a request `delay`
// later, and does so `times` times.
class DelayedEcho {
 public:
  DelayedEcho(std::size_t connections, milliseconds delay, int times = 1)
      : listener_(listen_on(resolve("127.0.0.1", 0))), acceptor_([this, connections, delay, times] {
          for (std::size_t i = 0; i < connections; ++i) {
            threads_.emplace_back([delay, times](const Fd& client) { echo(client, delay, times); },
                                  accept_from(listener_).connection);
          }
        }) {}
  ~DelayedEcho() {
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
  }
  DelayedEcho(const DelayedEcho&) = delete;
  DelayedEcho& operator=(const DelayedEcho&) = delete;

  Address address() const { return local_address(listener_); }

 private:
  static void echo(const Fd& client, milliseconds delay, int times) {
    std::string buffer(4096, '\0');
    for (;;) {
      const IoResult in = read_some(client, buffer);
      if (in.status != Io::ok) return;
      std::this_thread::sleep_for(delay);
      for (int i = 0; i < times; ++i)
        write_some(client, std::string_view(buffer).substr(0, in.size));
    }
  }

  Fd listener_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;  // last: it fills threads_
};

// Three seconds of load on a server that stands still for one of them.
LoadResult load_with_a_stall(LoadPlan plan) {
  ServerProcess server(kSound);
  plan.clients = 10;
  plan.warmup = 300ms;
  plan.duration = 3s;
  plan.on_moment = [&](Moment moment) {
    if (moment != Moment::begin) return;
    std::this_thread::sleep_for(200ms);  // so that the messages it delays are measured
    server.freeze();
    std::this_thread::sleep_for(1s);
    server.thaw();
  };
  return run_load(server.address(), plan);
}

LoadPlan short_plan(std::size_t clients) {
  LoadPlan plan;
  plan.clients = clients;
  plan.warmup = 100ms;
  plan.duration = 500ms;
  plan.give_up = 300ms;
  return plan;
}

Run echoload(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ECHOLOAD);
  return run_to_end({.argv = arguments, .environment = {}});
}

// The number behind "name": in a text of JSON; -1 if there is none.
double field(const std::string& json, const std::string& name) {
  const std::size_t at = json.find("\"" + name + "\": ");
  return at == std::string::npos ? -1 : std::stod(json.substr(at + name.size() + 4));
}

}  // namespace

TEST_CASE(
    "histogram-quantiles: any values: quantiles are at most one 64th too high, never too low") {
  std::mt19937_64 random(7);
  for (const double largest : {10.0, 20.0, 40.0, 64.0}) {
    Histogram histogram;
    std::vector<std::uint64_t> values;
    for (int i = 0; i < 20'000; ++i) {
      // Spreads them evenly over orders of magnitude.
      const double power = std::uniform_real_distribution<>(0, largest)(random);
      values.push_back(static_cast<std::uint64_t>(std::min(std::exp2(power), 1.8e19)) - 1);
      histogram.record(values.back());
    }
    std::sort(values.begin(), values.end());
    CHECK(histogram.count() == values.size());
    CHECK(histogram.max() == values.back());
    for (double share = 0.0005; share <= 1; share += 0.0005) {
      const auto rank = static_cast<std::size_t>(std::ceil(share * 20'000));
      const std::uint64_t exact = values[rank - 1];
      const std::uint64_t given = histogram.quantile(share);
      REQUIRE(given >= exact);
      REQUIRE(given - exact <= exact / 64);
    }
  }
}

TEST_CASE(
    "histogram-range: the smallest and the largest value: recorded, and added to another "
    "histogram") {
  Histogram one;
  CHECK(one.quantile(0.5) == 0);
  one.record(0);
  one.record(~std::uint64_t{0});
  CHECK(one.quantile(0.5) == 0);
  CHECK(one.quantile(1) == ~std::uint64_t{0});
  Histogram other;
  other.record(5);
  one.add(other);
  CHECK(one.count() == 3);
  CHECK(one.quantile(0.5) == 5);
}

TEST_CASE("latency-p50: a server that answers after 20 ms: a p50 of 20 ms in both loops") {
  LoadPlan plan = short_plan(5);
  plan.duration = 1s;
  SUBCASE("closed") {}
  SUBCASE("closed, and two threads") { plan.threads = 2; }
  SUBCASE("open") { plan.rate = 100; }  // 20 a second on each connection, which can do 50
  const DelayedEcho server(plan.clients, 20ms);
  const LoadResult result = run_load(server.address(), plan);
  CHECK(ms(result.latency.quantile(0.5)) >= 20);
  CHECK(ms(result.latency.quantile(0.5)) < 40);
  CHECK(result.answered >= 75);
  CHECK(result.answered <= 255);  // 51 can end in a second
  CHECK(result.unanswered == 0);
  CHECK(result.mismatched_bytes == 0);
  CHECK(result.held == plan.clients);
  if (plan.rate == 0) CHECK(result.bottleneck() == "");  // the generator mostly waited
}

TEST_CASE("depth: a depth of eight: eight messages are under way on a connection") {
  LoadPlan plan = short_plan(1);
  plan.depth = 8;
  const DelayedEcho server(1, 20ms);
  const LoadResult result = run_load(server.address(), plan);
  // The server takes all eight in one read, and answers once per 20 ms.
  CHECK(result.answered > 4 * 500 / 20);
  CHECK(result.answered <= 8 * (500 / 20 + 1));
}

TEST_CASE("open-loop-count: the open loop: all messages that were due are sent, and no more") {
  ServerProcess server(kSound);
  LoadPlan plan = short_plan(7);
  plan.rate = 2000;
  plan.threads = 3;
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.latency.count() == 1000);  // 2,000 a second for half a second
  CHECK(result.lateness.count() == 1000);
  CHECK(result.unanswered == 0);
  CHECK(result.total >= 1199);  // and a tenth of a second of warm-up
  CHECK(result.total <= 1201);
}

TEST_CASE("stall-open-loop: the server is suspended for a second: the open loop's p99 shows it") {
  LoadPlan plan;
  plan.rate = 2000;
  const LoadResult result = load_with_a_stall(plan);
  CHECK(ms(result.latency.quantile(0.99)) > 700);
  CHECK(ms(result.latency.max()) > 900);
  CHECK(result.latency.count() == 6000);
}

TEST_CASE(
    "stall-closed-loop: the server is suspended for a second: the closed loop's p99 does not show "
    "it") {
  const LoadResult result = load_with_a_stall({});
  CHECK(ms(result.latency.quantile(0.99)) < 300);
  CHECK(ms(result.latency.max()) > 900);  // only this shows it
}

TEST_CASE("changed-bytes: bytes come back changed: they are counted") {
  LoadPlan plan = short_plan(20);
  for (const std::string fault : {"mixes-connections", "c-string"}) {
    CAPTURE(fault);
    ServerProcess server(kSound.with({"--fault", fault}));
    const LoadResult result = run_load(server.address(), plan);
    CHECK(result.mismatched_bytes > 0);
    plan.rate = 2000;  // the second fault loses bytes: only later bytes show it
  }
}

TEST_CASE(
    "answered-twice: an answer comes twice: the connection ends, the bytes count as changed") {
  const DelayedEcho server(3, 20ms, 2);
  const LoadResult result = run_load(server.address(), short_plan(3));
  CHECK(result.mismatched_bytes >= 3 * 60);  // of 64: a few are right by chance
  CHECK(result.refused + result.broken == 3);
  CHECK(result.first_problem == "more came back than was sent");
}

TEST_CASE("missing-bytes: bytes do not come back: their message is unanswered") {
  ServerProcess server(kSound.with({"--fault", "truncates-large-reads"}));
  LoadPlan plan = short_plan(2);
  plan.size = 10'000;
  plan.depth = 10;
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.unanswered + result.mismatched_bytes > 0);
}

TEST_CASE("long-messages: messages of 300,000 bytes: echoed unchanged") {
  ServerProcess server(kSound);
  LoadPlan plan = short_plan(3);
  plan.size = 300'000;  // more than a write takes
  plan.depth = 2;
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.answered > 0);
  CHECK(result.mismatched_bytes == 0);
  CHECK(result.unanswered == 0);
}

TEST_CASE("refused-unserved: connections are refused, or not served: they are counted") {
  Address nobody;
  {
    const Fd listener = listen_on(resolve("127.0.0.1", 0));
    nobody = local_address(listener);
    const LoadResult unserved = run_load(nobody, short_plan(9));
    CHECK(unserved.unserved == 9);  // the kernel connects them; no program reads
    CHECK(unserved.held == 0);
  }
  const LoadResult refused = run_load(nobody, short_plan(9));
  CHECK(refused.refused == 9);
  CHECK(refused.first_problem == "Connection refused");
}

TEST_CASE("unserved-thread: none of a thread's connections is served: the others carry the load") {
  const DelayedEcho server(1, 20ms);
  LoadPlan plan = short_plan(3);
  plan.threads = 3;
  SUBCASE("closed") {}
  SUBCASE("open") { plan.rate = 30; }
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.held == 1);
  CHECK(result.unserved == 2);
  CHECK(result.answered > 2);
  CHECK(result.unanswered == 0);
}

TEST_CASE("no-time-wait: all clients have one address: no connection is left in TIME_WAIT") {
  holds([] {
    std::ifstream connections("/proc/net/tcp6");
    if (!connections) skip("no /proc/net/tcp6 to see it in");
    try {
      listen_on(resolve("::1", 0));
    } catch (const StartupError& none) {
      skip("no IPv6 here: {}", none.what());
    }
    ServerProcess server(kSound.with({"--host", "::1"}));  // IPv6 has one loopback address
    const LoadResult result = run_load(server.address(), short_plan(20));
    CHECK(result.held == 20);
    const std::string text = to_text(server.address());
    const int port = std::stoi(text.substr(text.rfind(':') + 1));
    std::string line;
    while (std::getline(connections, line)) {
      // Number, local and remote address in hex, state: 6 is TIME_WAIT.
      if (line.find(fmt::format(":{:04X} 06 ", port)) != std::string::npos) FAIL_CHECK(line);
    }
  });
}

TEST_CASE(
    "broken-connections: connections break during the load: they and their messages are counted") {
  ServerProcess server(kSound);
  LoadPlan plan = short_plan(10);
  plan.idle = 5;
  plan.rate = 1000;
  plan.on_moment = [&](Moment moment) {
    if (moment == Moment::begin) server.signal(SIGKILL);
  };
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.broken == 10);
  CHECK(result.idle_lost == 5);
  CHECK(result.unanswered > 400);  // of 500: messages due on a broken connection count
  CHECK(result.first_problem != "");
}

TEST_CASE("idle-connections: idle connections: they are held, and send nothing") {
  holds([] {
    ServerProcess server(kSound);
    LoadPlan plan = short_plan(10);
    plan.idle = 200;
    std::size_t held = 0;
    plan.on_moment = [&](Moment moment) {
      if (moment == Moment::end) held = server.usage().descriptors;
    };
    const LoadResult result = run_load(server.address(), plan);
    CHECK(held >= 210);
    CHECK(held < 230);
    CHECK(result.idle_held == 200);
    CHECK(result.idle_lost == 0);
  });
}

TEST_CASE("generator-late: a rate that is too high: the generator reports that it fell behind") {
  ServerProcess server(kSound);
  LoadPlan plan = short_plan(10);
  plan.rate = 20'000'000;  // unattainable
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.bottleneck().find("fell behind") != std::string::npos);
}

TEST_CASE("bottleneck: the generator is busy or late: it is reported as the bottleneck") {
  LoadResult result;
  result.cpu_share = 0.89;
  CHECK(result.bottleneck() == "");
  result.cpu_share = 0.95;
  CHECK(result.bottleneck().find("95 % of a core") != std::string::npos);

  LoadResult late;
  late.latency.record(3'000'000);
  late.lateness.record(900'000);
  CHECK(late.bottleneck() == "");
  late.lateness.record(2'000'000);
  CHECK(late.bottleneck().find("fell behind") != std::string::npos);
  late.latency.record(1'000'000'000);  // 2 ms late of a second do not matter
  CHECK(late.bottleneck() == "");
}

TEST_CASE("moments: a run: its moments come in order") {
  ServerProcess server(kSound);
  LoadPlan plan = short_plan(2);
  std::vector<Moment> seen;
  std::vector<Clock::time_point> when;
  plan.on_moment = [&](Moment moment) {
    seen.push_back(moment);
    when.push_back(Clock::now());
  };
  run_load(server.address(), plan);
  CHECK(seen == std::vector{Moment::connected, Moment::begin, Moment::end, Moment::drained});
  CHECK(when[2] - when[1] >= 400ms);
  CHECK(when[3] - when[2] < 1s);  // nothing more is sent
}

TEST_CASE("slow-requests: slow requests: not measured themselves, but their effect on others is") {
  LoadPlan plan = short_plan(5);
  plan.slow = 2;
  plan.rate = 500;
  plan.duration = 1s;
  const Command works = kSound.with({"--work", "200ms"});
  ServerProcess patient(works);
  const LoadResult beside = run_load(patient.address(), plan);
  CHECK(beside.held == 5);
  CHECK(beside.latency.count() == 500);
  CHECK(beside.slow_answered >= 2);
  CHECK(beside.slow_answered <= 2 * 6);
  CHECK(beside.mismatched_bytes == 0);
  CHECK(ms(beside.latency.quantile(0.9)) < 100);

  // A request that comes during slow work waits for the rest of the 200 ms: half of them,
  // in the median.
  ServerProcess blocked(works.with({"--fault", "works-in-the-loop"}));
  CHECK(ms(run_load(blocked.address(), plan).latency.quantile(0.9)) > 100);
}

TEST_CASE("slow-clients-only: a server with --work: only the slow clients ask for slow work") {
  ServerProcess server(kSound.with({"--work", "5s"}));
  LoadPlan plan = short_plan(5);
  plan.rate = 4000;
  const LoadResult result = run_load(server.address(), plan);
  CHECK(result.latency.count() == 2000);
  CHECK(result.unanswered == 0);
}

TEST_CASE("measure-server: a measurement: it has the server's CPU time, threads and memory") {
  holds([] {
    LoadPlan plan = short_plan(50);
    plan.warmup = 1s;  // longer than the rest, and must not be counted
    const Measurement m = measure(kSound, plan);
    CHECK(m.load.held == 50);
    CHECK(m.load.cpu_share > 0.01);
    CHECK(m.load.cpu_share < 1.1);
    CHECK(m.cpu_us > 0.1);
    CHECK(m.cpu_us < 1000);
    CHECK(m.cores > 0.01);
    CHECK(m.cores < 1.5);  // it has one thread
    CHECK(m.cores * m.load.seconds * 1e6 == doctest::Approx(m.cpu_us * double(m.load.answered)));
    CHECK(m.threads == 1);
    CHECK(m.resident > 100'000);
    CHECK(m.system_share > 0.3);
    CHECK(m.system_share <= 1);
    // With one message under way the server sleeps after nearly every message.
    const double switches = measure(kSound, short_plan(1)).switches;
    CHECK(switches > 0.2);
    CHECK(switches < 3);
  });
}

TEST_CASE("measure-memory: memory per connection: idle connections count too") {
  holds([] {
    if (kSanitized) skip("memory is the sanitizer's");
    LoadPlan plan = short_plan(10);
    plan.idle = 500;
    // Its std::list costs some 100 bytes for each, an empty output none.
    const double sound = measure(kSound, plan).kib_per_connection;
    const double leaky = measure(kSound.with({"--fault", "leaks-memory"}), plan).kib_per_connection;
    CHECK(leaky - sound > 3);  // it leaks 4 KiB a message
    CHECK(leaky - sound < 6);
  });
}

TEST_CASE("measure-json: measure: it prints JSON, or the reason and an exit code") {
  const Run run = run_to_end({.argv = {MEASURE, "--duration", "300ms", "--warmup", "100ms",
                                       "--clients", "4", BROKEN_SERVER},
                              .environment = {}});
  CHECK(run.exit.text() == "exit code 0");
  CHECK(run.errors == "");
  CHECK(field(run.output, "held") == 4);
  CHECK(field(run.output, "server_threads") >= 0);
  CHECK(field(run.output, "resident_kib") >= 0);

  const Run none = run_to_end({.argv = {MEASURE, "no-such-server"}, .environment = {}});
  CHECK(none.exit.text() == "exit code 1");
  CHECK(none.errors.find("cannot run no-such-server") != std::string::npos);
  CHECK(run_to_end({.argv = {MEASURE}, .environment = {}}).exit.text() == "exit code 2");
}

TEST_CASE("echoload-json: echoload --json: it prints JSON, and exits with 0") {
  ServerProcess server(kSound);
  const Run run = echoload({"--clients", "3", "--duration", "300ms", "--warmup", "100ms", "--rate",
                            "1000", "--json", to_text(server.address())});
  CHECK(run.exit.text() == "exit code 0");
  CHECK(run.errors == "");
  CHECK(field(run.output, "held") == 3);
  CHECK(field(run.output, "measured") == 300);
  CHECK(field(run.output, "p50_us") > 0);
  CHECK(field(run.output, "max_us") >= field(run.output, "p99_9_us"));
  CHECK(field(run.output, "generator_cpu_share") > 0);
  CHECK(run.output.find("\"bottleneck\": \"") != std::string::npos);
}

TEST_CASE("echoload-failure: bytes come back changed, or none do: echoload exits with 1") {
  ServerProcess server(kSound.with({"--fault", "c-string"}));
  const Run changed = echoload({"--clients", "20", "--rate", "2000", "--duration", "300ms",
                                "--warmup", "100ms", "--json", to_text(server.address())});
  CHECK(changed.exit.text() == "exit code 1");
  CHECK(field(changed.output, "answered") > 0);
  CHECK(field(changed.output, "mismatched_bytes") > 0);

  const Run refused = echoload({"--clients", "2", "127.0.0.1:1"});
  CHECK(refused.exit.text() == "exit code 1");
  CHECK(refused.output.find("2 refused") != std::string::npos);
}

TEST_CASE("echoload-misuse: wrong arguments: echoload prints the reason, and exits with 2") {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"127.0.0.1"},
      {"127.0.0.1:"},
      {"127.0.0.1:0"},
      {"127.0.0.1:65536"},
      {"127.0.0.1:80x"},
      {":80"},
      {"127.0.0.1:80", "more"},
      {"--clients", "0", "127.0.0.1:80"},
      {"--threads", "101", "127.0.0.1:80"},
      {"--depth", "2", "--rate", "5", "127.0.0.1:80"},
      {"--no-such-flag", "127.0.0.1:80"},
  };
  for (const auto& arguments : wrong) {
    const Run run = echoload(arguments);
    CAPTURE(run.errors);
    CHECK(run.exit.text() == "exit code 2");
    CHECK(run.output == "");
    CHECK(run.errors.find("usage: ") != std::string::npos);
  }
  const Run many = echoload({"--clients", "100000000", "127.0.0.1:80"});
  CHECK(many.exit.text() == "exit code 1");
  CHECK(many.errors.find("the limit is") != std::string::npos);
}
